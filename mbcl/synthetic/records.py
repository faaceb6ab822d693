"""The results of a synthetic study.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, L points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.seeding import numpy_generator
from mbcl.synthetic.groups import State
from mbcl.synthetic.losses import mean_batch_loss
from mbcl.synthetic.optima import Optimum, distance, rearranging_norm
from mbcl.synthetic.points import CHUNK_ELEMENTS, clip_losses, similarities
from mbcl.synthetic.selections import Method
from mbcl.synthetic.settings import Settings

Array = NDArray[np.float64]

RECORD = "synthetic.json"
"""The file that marks a folder as a synthetic study."""
MAX_REARRANGED = 128
"""Maximum number of samples for the published norm, which reads N x N values N times."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The measures of points, (S,) float64 each, or (S, L) in a curve.

    Args:
        true_loss: the loss of all samples as one batch.
        distance: the distance to the known optimum; NaN without one.
        rearranging: the published norm; NaN without a known optimum, and for many samples.
    """

    true_loss: Array
    distance: Array
    rearranging: Array


MEASURES = tuple(field.name for field in fields(Measured))
"""The names of the measures."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference for the losses.

    Args:
        known: the optimum, if it is known in closed form.
        full_loss: the minimum known loss of all samples as one batch: that of the optimum, or the minimum over restarts
            and runs; None if N is too large for restarts.
        restarted_loss: the minimum over the restarts alone, which is the same for every study of this N and d; None
            without restarts.
        other_minimisers: without a known optimum, by B: the full loss at the best minimiser of the mean over all
            batches, minus ``full_loss``; 0 if both losses have the same minimisers, as at the known optima.
    """

    known: Optimum | None
    full_loss: float | None
    restarted_loss: float | None = None
    other_minimisers: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Curve:
    """The curve and the final result of one method.

    Args:
        steps, updates, samples: (L,) int64, the work until each point, in three counts.
        batch_loss: (S, L) float64, see :class:`~mbcl.synthetic.groups.State`.
        course: the measures along the curve, (S, L) each.
        x_2SND: (2, S, N, D) the points at the end.
        total_updates, total_samples: the counts at the end; larger than at the last point of the curve if that point
            is after the first update of its step.
        final: the measures at the end.
        mean_loss: (S,) float64, the mean loss over all batches of size B, at the end.
        mean_loss_error: (S,) float64, its standard error; 0 where it is exact.
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
    mean_loss: Tensor
    mean_loss_error: Tensor

    def gram(self) -> Tensor:
        """Return the Gram matrices u v^T at the end, (S, N, N) float64."""
        return similarities(self.x_2SND)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a study.

    Args:
        start_2SND: (2, S, N, D) float64, the common starting points of all methods.
        curves: one per method, in the order of the settings.
    """

    settings: Settings
    start_2SND: Tensor
    curves: list[Curve]
    reference: Reference


class Recorder:
    """A recorder that collects the points of a method's curve during the study."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._states: list[tuple[int, int, int]] = []
        self._batch_loss: list[Array] = []
        self._measured: list[Measured] = []

    def log(self, step: int, state: State, known: Optimum | None) -> None:
        """Measure a state and append it to the curve."""
        self._states.append((step, state.updates, state.samples))
        self._batch_loss.append(state.batch_loss_S.double().cpu().numpy())
        self._measured.append(measure(state.x_2SND, known))

    def curve(self, final: State, known: Optimum | None) -> Curve:
        """Return the whole curve with the measures that are only taken at the end."""
        size = self._method.sampler.plan_width(final.x_2SND.shape[2])
        steps, updates, samples = np.array(self._states, dtype=np.int64).T
        return Curve(
            self._method,
            steps,
            updates,
            samples,
            np.stack(self._batch_loss, axis=1),
            Measured(**{key: np.stack([getattr(m, key) for m in self._measured], axis=1) for key in MEASURES}),
            final.x_2SND,
            final.updates,
            final.samples,
            measure(final.x_2SND, known),
            *mean_batch_loss(final.x_2SND, size, numpy_generator(0, "synthetic/sampled batches", size)),
        )


def measure(x_2SND: Tensor, known: Optimum | None) -> Measured:
    """Measure points, in chunks of runs, because each run needs an N x N matrix."""
    num_samples = x_2SND.shape[2]
    measures: list[Tensor] = []
    for part_2SND in x_2SND.split(max(1, CHUNK_ELEMENTS // num_samples**2), dim=1):
        z_SNN = similarities(part_2SND)
        loss_S = clip_losses(z_SNN).double()
        distance_S = rearranging_S = torch.full_like(loss_S, torch.nan)
        if known is not None:
            distance_S = distance(z_SNN, known)
            rearranging_S = rearranging_norm(z_SNN, known) if num_samples <= MAX_REARRANGED else rearranging_S
        measures.append(torch.stack([loss_S, distance_S, rearranging_S]))
    return Measured(*torch.cat(measures, dim=1).cpu().numpy())
