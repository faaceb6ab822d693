"""Embeddings at the limits of what a sampler accepts.

Letters: N samples, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.plan import Embeddings
from mbcl.seeding import torch_generator


def random_views(num_samples: int, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two (N, D) float32 views of normally distributed samples, the second with added noise."""
    generator = torch_generator(seed, "testing/embeddings")
    z1 = torch.randn(num_samples, dim, generator=generator)
    return z1, z1 + 0.5 * torch.randn(num_samples, dim, generator=generator)


def extreme_embeddings(num_samples: int) -> dict[str, Embeddings]:
    """Return finite embeddings from which every sampler must make a plan, by a description of each.

    They hold constant, zero and duplicate rows, rows of extreme lengths, one dimension and more dimensions than
    samples, every float dtype, and tensors that are not contiguous. Each has one case with both views equal and one
    with opposite views.

    Args:
        num_samples: N, at least 2.

    Example:
        >>> extreme_embeddings(6)["all rows equal, opposite views"].z2.unique()
        tensor([-1.])
    """
    views = _extreme_views(num_samples)
    pairs = {name: Embeddings(z, z) for name, z in views.items()}
    return pairs | {f"{name}, opposite views": Embeddings(z, -z) for name, z in views.items()}


def _extreme_views(num_samples: int) -> dict[str, Tensor]:
    """Return (N, D) tensors by their description."""

    def rows(dim: int = 3) -> Tensor:
        return random_views(num_samples, dim)[0]

    number_N1 = torch.arange(num_samples)[:, None]
    even_N1 = number_N1 % 2 == 0
    return {
        "all rows equal": torch.ones(num_samples, 3),
        "zero rows": torch.zeros(num_samples, 3),
        "some zero rows": rows() * (number_N1 % 3 > 0),
        "pairs of duplicates": rows()[torch.arange(num_samples) // 2],
        "ten copies of each": rows()[torch.arange(num_samples) // 10],
        "nearly equal rows": torch.ones(num_samples, 3) + 1e-6 * rows(),
        "one dimension": rows(dim=1),
        "one dimension, one sign": rows(dim=1).abs() + 0.1,
        "one dimension, 1e12": rows(dim=1) * 1e12,
        "steps of eight": number_N1.floor_divide(8).float().expand(-1, 3),
        "two opposite points": torch.where(even_N1, 1.0, -1.0).expand(-1, 3).contiguous(),
        "one far away": rows() + 1e6 * (number_N1 == num_samples // 6),
        "every other row 1e30": rows() * torch.where(even_N1, 1e30, 1.0),
        "every other row 1e-30": rows() * torch.where(even_N1, 1e-30, 1.0),
        "all rows 1e30": rows() * 1e30,
        "all rows 1e-30": rows() * 1e-30,
        "smallest numbers": torch.full((num_samples, 3), 1e-45),
        "largest numbers": torch.full((num_samples, 3), torch.finfo(torch.float32).max),
        "more dimensions than samples": rows(dim=2 * num_samples + 8),
        "float16": rows().half(),
        "bfloat16": rows().bfloat16(),
        "bfloat16 as float32": rows().bfloat16().float(),
        "float64": rows().double() * 1e200,
        "not contiguous": rows(dim=6)[:, ::2],
        "one value broadcast": torch.ones(1, 1).expand(num_samples, 3),
    }
