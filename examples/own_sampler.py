"""A sampler of one's own: the samples of a batch lie side by side along the axis on which they differ most.

``python examples/own_sampler.py`` checks it, and compares its batches with random ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits

import mbcl
from mbcl.samplers import SAMPLERS, FloatArray, PoolPlan, PoolSampler
from mbcl.testing import check_sampler


@SAMPLERS.register("axis", aliases=())
@dataclass(frozen=True, kw_only=True)
class Axis(PoolSampler):
    """Everything is one pool, which is sorted along one of its principal axes and cut into batches.

    ``number`` is that axis, 0 for the first. Batches run from one end of the axis to the other.
    """

    name: ClassVar[str] = "axis"
    number: int = 0

    def pool_sizes(self, num_samples: int) -> list[int]:
        """Return the sizes of the pools: one, of whole batches."""
        return [self.plan_length(num_samples) * self.batch_size]

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Return the batches of the pool."""
        both = np.concatenate([z1_MD, z2_MD], axis=1).astype(np.float64)
        both /= np.abs(both).max() or 1.0  # so that the largest numbers do not overflow
        centred = both - both.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2]
        order = np.argsort(centred @ axes[min(self.number, len(axes) - 1)], kind="stable")
        return PoolPlan(order.reshape(-1, self.batch_size))


def main() -> None:
    """Check the sampler, and plan batches of digits."""
    check_sampler("axis", batch_size=4)
    x = torch.from_numpy(load_digits().data).float()
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (x - x.mean(0) + torch.randn(x.shape, generator=generator) for _ in range(2))
    criterion = mbcl.objectives.build("simclr", temperature=0.1)
    for sampler, parameters in (("shuffle", {}), ("axis", {})):
        batches = mbcl.torch.PlannedBatchSampler.from_sampler(
            sampler, mbcl.Embeddings(z1, z2), batch_size=32, **parameters
        )
        losses = [criterion(z1[rows], z2[rows], None) for rows in batches]
        print(f"{sampler}: mean loss of a batch {torch.stack(losses).mean():.3f}")


if __name__ == "__main__":
    main()
