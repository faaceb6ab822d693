"""Which samples share a forward pass of the embedding pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.seeding import numpy_generator


def random_chunks(num_samples: int, batch_size: int, seed: int, *keys: int) -> tuple[Tensor, ...]:
    """Partition data-set positions into nearly equal random chunks of at most ``batch_size``.

    Chunks of consecutive positions would hold few classes each where files are in the order of their classes: batch
    norm with a chunk's statistics would then subtract the means of classes.

    Args:
        num_samples: N.
        batch_size: the most positions of a chunk.
        seed: of the permutation that is cut into chunks.
        *keys: further numbers that it depends on, such as epoch and round.

    Returns:
        int64 tensors, each position in one of them.
    """
    order = numpy_generator(seed, "chunks", *keys).permutation(num_samples)
    return torch.from_numpy(order).tensor_split(-(-num_samples // batch_size))
