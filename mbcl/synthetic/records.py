"""What a synthetic study finds.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, L points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.seeding import numpy_generator
from mbcl.synthetic.groups import Final, State
from mbcl.synthetic.losses import MeanLoss, mean_batch_loss
from mbcl.synthetic.optima import Optimum, distance, rearranging_norm
from mbcl.synthetic.points import CHUNK_ELEMENTS, clip_losses, similarities
from mbcl.synthetic.selections import Method
from mbcl.synthetic.settings import Settings

Array = NDArray[np.float64]

RECORD = "synthetic.json"
"""Says that a folder holds a synthetic study."""
MOST_REARRANGED = 128
"""Samples up to which the published norm is computed: it goes through N x N values N times."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of points, (S,) float64 each, or (S, L) in a curve.

    Args:
        true_loss: of everything as one batch.
        distance: to the known optimum; NaN without one.
        rearranging: the published norm; NaN without a known optimum, and for many samples.
    """

    true_loss: Array
    distance: Array
    rearranging: Array


@dataclass(frozen=True, eq=False)
class Reference:
    """What the losses are compared with.

    Args:
        known: the optimum, where theory has it.
        full_loss: the least loss of everything that is known: the optimum's, or the least that restarts or runs found;
            None where N is too large to look for it.
        restarts: how many there were; 0 with a known optimum.
        restarted_loss: the least that the restarts alone found, which is the same for every study of this N and d; None
            without restarts.
        other_minimisers: without a known optimum, by B, the loss of everything at the best minimiser of the mean of all
            batches, less ``full_loss``: 0 if both have the same minimisers, as they have at the known optima.
    """

    known: Optimum | None
    full_loss: float | None
    restarts: int = 0
    restarted_loss: float | None = None
    other_minimisers: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Curve:
    """One method.

    Args:
        method: which.
        steps, updates, samples: (L,) int64, how far, counted in three ways.
        batch_loss: (S, L) float64, see :class:`~mbcl.synthetic.groups.State`.
        course: (S, L) each.
        x_2SND: (2, S, N, D) the points at the end.
        total_updates, total_samples: at the end; more than at the last point where that is an earlier one.
        final: the measures there.
        mean_loss: over all batches of B, there.
    """

    method: Method
    steps: NDArray[np.int64]
    updates: NDArray[np.int64]
    samples: NDArray[np.int64]
    batch_loss: Array
    course: Measured
    x_2SND: Tensor
    total_updates: int
    total_samples: int
    final: Measured
    mean_loss: MeanLoss

    def gram(self) -> Tensor:
        """(S, N, N) float64, u v^T at the end."""
        return similarities(self.x_2SND)


@dataclass(frozen=True, eq=False)
class Outcome:
    """All that a study found.

    Args:
        settings: what was asked for.
        start_2SND: (2, S, N, D) float64, where every method began.
        curves: one a method, in the order that was asked for.
        reference: what losses are compared with.
    """

    settings: Settings
    start_2SND: Tensor
    curves: list[Curve]
    reference: Reference


class Recorder:
    """The points of a method's curve, as they come."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.x_2SND: Tensor | None = None
        self.updates = self.samples = 0
        self._states: list[tuple[int, int, int]] = []
        self._batch_loss: list[Array] = []
        self._measured: list[Measured] = []

    def log(self, step: int, state: State, known: Optimum | None) -> None:
        """One point more."""
        self._states.append((step, state.updates, state.samples))
        self._batch_loss.append(state.batch_loss_S.double().cpu().numpy())
        self._measured.append(measure(state.x_2SND, known))

    def end(self, final: Final) -> None:
        """Where it ended."""
        self.x_2SND, self.updates, self.samples = final.x_2SND, final.updates, final.samples

    def curve(self, known: Optimum | None) -> Curve:
        """All of it, and what is measured at the end only."""
        assert self.x_2SND is not None
        steps, updates, samples = np.array(self._states, dtype=np.int64).T
        size = self.x_2SND.shape[2] if self.method.name == "full" else self.method.batch_size
        course = Measured(
            *(
                np.stack([getattr(measured, key) for measured in self._measured], axis=1)
                for key in ("true_loss", "distance", "rearranging")
            )
        )
        return Curve(
            self.method,
            steps,
            updates,
            samples,
            np.stack(self._batch_loss, axis=1),
            course,
            self.x_2SND,
            self.updates,
            self.samples,
            measure(self.x_2SND, known),
            mean_batch_loss(self.x_2SND, size, numpy_generator(0, "synthetic/sampled batches", size)),
        )


def measure(x_2SND: Tensor, known: Optimum | None) -> Measured:
    """What is known of points; a few runs at a time, for an N x N matrix each."""
    num_samples = x_2SND.shape[2]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for some in x_2SND.split(max(1, CHUNK_ELEMENTS // num_samples**2), dim=1):
        z_SNN = similarities(some)
        loss_S = clip_losses(z_SNN).double()
        nothing_S = torch.full_like(loss_S, torch.nan)
        rearrange = known is not None and num_samples <= MOST_REARRANGED
        found.append(
            (
                loss_S,
                nothing_S if known is None else distance(z_SNN, known),
                rearranging_norm(z_SNN, known) if known is not None and rearrange else nothing_S,
            )
        )
    return Measured(*(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)))
