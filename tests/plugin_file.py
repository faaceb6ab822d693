"""A plugin as a user writes it: a sampler, an objective, an encoder and a data set."""

PLUGIN = '''
"""Components of my own."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

import mbcl.data
from mbcl.functional import dcl
from mbcl.models import ENCODERS
from mbcl.objectives import OBJECTIVES, StatelessObjective
from mbcl.samplers import SAMPLERS, PoolPlan, PoolSampler


@SAMPLERS.register("by_norm")
@dataclass(frozen=True, kw_only=True)
class ByNorm(PoolSampler):
    """Batches of samples whose first view has a similar norm.

    Args:
        batch_size: B.
        groups: batches a pool.
        mix, skip: as for all samplers with embeddings.
    """

    name: ClassVar[str] = "by_norm"

    groups: int = 4

    def pool_sizes(self, num_samples):
        batches = num_samples // self.batch_size
        return [self.batch_size * min(self.groups, batches - first) for first in range(0, batches, self.groups)]

    def plan_one(self, z1_MD, z2_MD, seed):
        order = np.argsort(np.linalg.norm(z1_MD, axis=1), kind="stable")
        return PoolPlan(order.reshape(-1, self.batch_size))


@OBJECTIVES.register("mine")
class Mine(StatelessObjective):
    """The decoupled loss under another name."""

    loss = staticmethod(dcl)


@ENCODERS.register("linear")
class Linear(nn.Module):
    """Pixels, averaged over a grid, and one linear map."""

    nonlinearity = "silu"

    def __init__(self, *, in_channels: int, width: int = 8) -> None:
        super().__init__()
        self.out_features = width
        self.pool, self.map = nn.AdaptiveAvgPool2d(4), nn.Linear(16 * in_channels, width)

    def forward(self, x):
        return self.map(self.pool(x).flatten(1))


def read(request):
    splits = mbcl.data.load("digits")
    return mbcl.data.Splits(*(replace(part, images=255 - part.images) for part in (splits.train, splits.test)))


mbcl.data.DATASETS.register("negatives")(mbcl.data.DatasetSpec(read, "digits, white and black exchanged", ""))
'''
EXPERIMENT = {
    "data": {"name": "negatives", "max_samples": 200},
    "encoder": {"name": "linear"},
    "projector": {"hidden": 32, "dim": 16},
    "objective": {"name": "mine", "temperature": 0.2},
    "optimizer": {"name": "lars", "lr": 0.05},
    "schedule": {"warmup_epochs": 0},
    "sampler": {"name": "by_norm", "groups": 2},
    "train": {"epochs": 1, "batch_size": 16},
    "evaluation": {"metrics": ["retrieval"]},
    "track": [],
}
