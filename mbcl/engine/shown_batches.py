"""Batches of the last plan for people to look at: the hardest one, one of median loss, and a random one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from torch import Tensor

from mbcl.data.samples import SampleSet
from mbcl.seeding import numpy_generator

BATCHES_FILE = "batches.json"
MAX_SHOWN = 32
"""Maximum number of samples of a batch that are shown."""


def shown_batches(batches: Tensor, losses: Tensor, images: SampleSet, *, seed: int) -> bytes:
    """Return the content of ``batches.json``.

    It has for each batch which one it is, its loss, its size, the number of its samples by class, and for the first
    samples their position, class and, of images, picture, a small PNG in base64. Where the same batch is two of them,
    it is there twice.

    Args:
        batches: (S, B) int64, batches of the last plan that were trained on.
        losses: (S,), the loss of each when it was trained on.
        images: the training samples.
        seed: the seed of the experiment, which draws the random batch.
    """
    ascending = losses.argsort(stable=True)
    rows = {
        "hardest": int(ascending[-1]),
        "median": int(ascending[(len(ascending) - 1) // 2]),
        "random": int(numpy_generator(seed, "shown batch").integers(len(batches))),
    }
    found = [_describe(which, batches[row], float(losses[row]), images) for which, row in rows.items()]
    return (json.dumps({"batches": found}, allow_nan=False) + "\n").encode()


def _describe(which: str, batch: Tensor, loss: float, images: SampleSet) -> dict[str, Any]:
    positions = batch.cpu()
    names = [images.classes[label] if images.classes else str(label) for label in images.labels[positions].tolist()]
    shown = images.shown(positions[:MAX_SHOWN])
    return {
        "which": which,
        "loss": loss,
        "size": len(batch),
        "classes": dict(Counter(names).most_common()),
        "samples": [
            {"position": position, "class": name, **each}
            for position, name, each in zip(positions.tolist(), names, shown, strict=False)
        ],
    }
