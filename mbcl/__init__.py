"""mbcl: the choice of the samples that meet in a mini-batch of contrastive learning.

Importing this package loads neither Ray, torchvision, W&B, matplotlib nor kornia; submodules are imported on first use.

Example:
    >>> import mbcl
    >>> mbcl.objectives.build("simclr", temperature=0.1)
    SimCLR(temperature=0.1)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbcl import data, metrics, objectives, optim, samplers, torch
    from mbcl.plan import BatchPlan, Embeddings

__version__ = "0.2.0"

__all__ = ["BatchPlan", "Embeddings", "data", "metrics", "objectives", "optim", "samplers", "torch"]


def __getattr__(name: str) -> object:
    if name in ("BatchPlan", "Embeddings"):
        return getattr(importlib.import_module("mbcl.plan"), name)
    if name in __all__:
        return importlib.import_module(f"mbcl.{name}")
    raise AttributeError(f"module 'mbcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
