"""SogCLR: a moving average per sample represents the negatives that are not in the batch.

Letters: b samples of this rank, B samples of the whole batch, D dimensions, N samples of the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mbcl.functional import check_choice, check_count, check_moving_temperature, check_number, sogclr
from mbcl.objectives._base import OBJECTIVES, Candidates
from mbcl.objectives._stateful import StatefulObjective

FirstTouch = Literal["sample", "batch"]


@OBJECTIVES.register("sogclr", aliases=("sog",))
class SogCLR(StatefulObjective):
    """The dynamic contrastive loss: negatives are weighted against a moving average u of every sample.

    Details of the definition and its numerics: :func:`mbcl.functional.sogclr`.

    The state, equal on all ranks and in ``state_dict()``:

    - ``u``: (N,) float64, the moving averages, 0 for samples without one. It stays float64 under every cast of the
      module: at a temperature of 0.01 it exceeds float32.
    - ``visited_at``: (N,) int64, the number of the update that wrote a sample's u, counted from 1; -1 if none did.
    - ``num_updates``: () int64, the number of batches that have updated u.

    Formula:
        Negatives c of an anchor a weigh exp(s_ac / T) / u_a, without a gradient; u_a = (1 - gamma) u + gamma · mean of
        exp(s_ac / T) over the negatives, kept for every sample between its visits.

    Cost:
        (2B)² similarities a step; 16 bytes a sample on every rank, and one more collective a step.

    When to use:
        With ``shuffle`` and small batches: u approaches the average over the whole data set only if a sample is
        combined with other samples each time. Samplers that choose batches (``osgd``, ``spectral``) combine it with its
        nearest ones, which makes u larger than that average. ``osgd`` cannot score with this loss, since it needs
        indices. With ``osgd`` a sample may not be visited for long, and its u is then old (:meth:`age`).

    Args:
        num_samples: N, of the data set that ``indices`` point into.
        temperature: at least 0.002; divides the cosines in the weights.
        gamma: in (0, 1]; the weight of the newest batch in u.
        first_touch: when a batch's average replaces u, as if gamma were 1. ``sample``: for each sample that has no u
            yet. ``batch``, as published: for a whole batch if none of its samples has one; otherwise an unseen sample
            starts at gamma times its average, which makes its weights too large by a factor of 1/gamma.

    Reference:
        Yuan et al., Provable Stochastic Optimization for Global Contrastive Learning, arXiv 2202.12387.

    Example:
        >>> objective = SogCLR(num_samples=3, temperature=1.0)
        >>> objective(torch.eye(2), torch.eye(2), torch.tensor([2, 0]))
        tensor(-2.)
        >>> objective.u, objective.age()
        (tensor([1.0000, 0.0000, 1.0000], dtype=torch.float64), 0.0)
    """

    u: Tensor
    visited_at: Tensor
    num_updates: Tensor

    def __init__(
        self, *, num_samples: int, temperature: float = 0.1, gamma: float = 0.9, first_touch: FirstTouch = "sample"
    ) -> None:
        super().__init__()
        self.num_samples = check_count("num_samples", num_samples)
        self.temperature = check_moving_temperature(temperature)
        self.gamma = check_number("gamma", gamma, above=0.0, most=1.0)
        check_choice("first_touch", first_touch, ("sample", "batch"))
        self.first_touch = first_touch
        self.register_buffer("u", torch.zeros(num_samples, dtype=torch.float64))
        self.register_buffer("visited_at", torch.full((num_samples,), -1))
        self.register_buffer("num_updates", torch.tensor(0))

    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        """Return the loss of a batch, as in the base class; in training mode also compute the samples' new u.

        ``indices`` are required and distinct. Candidates need theirs, too.

        Raises:
            ValueError: if ``indices``, or the candidates' ones where ``first_touch`` is ``batch``, are missing, of
                another shape or type, or out of range. The range is checked for CPU tensors only: on a GPU the check
                would wait for the device at every step.
        """
        self.pending = None
        local_b = self._checked(indices, len(z1))
        batch_B = local_b if candidates is None else candidates.indices
        loss, u_b = sogclr(
            z1,
            z2,
            u=self.u[local_b],
            gamma=self._gamma(local_b, batch_B),
            temperature=self.temperature,
            **Candidates.arguments(candidates),
        )
        if self.training and candidates is None:
            self.commit(local_b, u_b)
        elif self.training:
            self.pending = u_b
        return loss

    def _gamma(self, local_b: Tensor, batch_B: Tensor | None) -> Tensor:
        """(b,) float64: 1 where the batch's average replaces u, else gamma."""
        if self.first_touch == "sample":
            first_b = self.visited_at[local_b] < 0
        else:
            # The published test: u is never negative, so the sum is 0 only if no sample of the whole batch has a u.
            first_b = (self.u[self._checked(batch_B)].sum() == 0).expand(len(local_b))
        return torch.full_like(first_b, self.gamma, dtype=torch.float64).masked_fill(first_b, 1.0)

    def _checked(self, indices: Tensor | None, num: int | None = None) -> Tensor:
        """Return ``indices`` if they are data-set positions; see :meth:`forward`."""
        if indices is None:
            raise ValueError("sogclr: indices are required: the (B,) int64 data-set positions of the batch")
        if indices.ndim != 1 or (num is not None and len(indices) != num):
            expected = "one-dimensional" if num is None else f"({num},)"
            raise ValueError(f"sogclr: indices must be {expected}, found {tuple(indices.shape)}")
        if indices.dtype != torch.int64:
            raise ValueError(f"sogclr: indices must be int64, found {indices.dtype}")
        if indices.device.type == "cpu" and len(indices):
            lowest, highest = int(indices.min()), int(indices.max())
            if lowest < 0 or highest >= self.num_samples:
                raise ValueError(f"sogclr: indices must be in [0, {self.num_samples}), found {lowest} to {highest}")
        return indices

    @torch.no_grad()
    def commit(self, indices: Tensor, values: Tensor) -> None:
        """Write the new u, on any device, of a whole batch as one update; see the base class.

        Raises:
            ValueError: if the two differ in shape, or the indices are not valid for :meth:`forward`.
        """
        indices = self._checked(indices)
        if values.shape != indices.shape:
            raise ValueError(f"sogclr: {len(indices)} indices, but values of shape {tuple(values.shape)}")
        indices = indices.to(self.u.device)
        self.num_updates += 1
        self.u[indices] = values.to(self.u)
        self.visited_at[indices] = self.num_updates
        self.pending = None

    def age(self) -> float | None:
        """Mean of ``num_updates - visited_at`` over the samples that have a u; see the base class."""
        age = (self.num_updates - self.visited_at)[self.visited_at >= 0]
        return age.double().mean().item() if len(age) else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SogCLR:
        """Move or cast the module; u is moved, but never cast."""
        u = self.u
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.u.dtype != torch.float64:
            self.u = u.to(self.u.device)
        return self

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return (
            f"num_samples={self.num_samples}, temperature={self.temperature!r}, gamma={self.gamma!r}, "
            f"first_touch={self.first_touch!r}"
        )
