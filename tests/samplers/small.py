"""Every registered sampler at a size that fits a few dozen samples."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.plan import Embeddings
from mbcl.samplers import SAMPLERS, Sampler, build
from mbcl.seeding import torch_generator


def build_small(name: str, batch_size: int) -> Sampler:
    """Groups of a few batches, whatever the sampler's parameters are called."""
    parameters = inspect.signature(SAMPLERS[name]).parameters
    small: dict[str, object] = {"pool": max(12, batch_size), "k": 4 if "q" in parameters else 3, "q": 2}
    if name == "metis":  # of a dozen samples the first thirty ranks are all
        small["skip"] = 2
    return build(name, batch_size=batch_size, **{key: value for key, value in small.items() if key in parameters})


def embeddings(num_samples: int, seed: int = 0, dim: int = 5) -> Embeddings:
    generator = torch_generator(seed, "embeddings")
    z1 = torch.randn(num_samples, dim, generator=generator)
    return Embeddings(z1, z1 + 0.5 * torch.randn(num_samples, dim, generator=generator))


def conflicts(batch_M: NDArray[np.integer], neighbours_MP: NDArray[np.integer]) -> int:
    """The number of pairs (sample, its neighbour) that share a batch; ``batch_M`` is -1 for samples in no batch."""
    same_batch_MP = batch_M[neighbours_MP] == batch_M[:, None]
    return int((same_batch_MP & (batch_M >= 0)[:, None]).sum())
