"""The result table: the methods of a study against the optimum, as rows."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbcl.console import align_columns
from mbcl.errors import pluralize
from mbcl.synthetic.records import Curve, Outcome

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean, minimum and maximum of a measure over the seeds; NaN if it was not taken."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values_S: Array) -> Spread:
        """Summarise one value per seed."""
        return Spread(float(values_S.mean()), float(values_S.min()), float(values_S.max()))

    @property
    def known(self) -> bool:
        """Whether the measure was taken."""
        return not math.isnan(self.mean)


@dataclass(frozen=True)
class Row:
    """A method at the end of the study.

    Args:
        label, sampler, batch_size: the method; the batch of ``full`` has all samples.
        updates, samples: the total work.
        true_loss: the loss of all samples as one batch.
        excess: ``true_loss`` minus that of the optimum, or minus the minimum known loss.
        distance: the distance to the known optimum.
        rearranging: the published norm.
        mean_loss: the mean loss over all batches of this size.
        mean_loss_error: the largest standard error of ``mean_loss`` over the seeds; 0 if exact.
        optimal_mean_loss: ``mean_loss`` of the known optimum; NaN without one.
    """

    label: str
    sampler: str
    batch_size: int
    updates: int
    samples: int
    true_loss: Spread
    excess: Spread
    distance: Spread
    rearranging: Spread
    mean_loss: Spread
    mean_loss_error: float
    optimal_mean_loss: float


def row_of(curve: Curve, outcome: Outcome) -> Row:
    """Return the row of one method."""
    known, full = outcome.reference.known, outcome.reference.full_loss
    size = curve.method.sampler.plan_width(outcome.settings.n)
    return Row(
        label=curve.method.label,
        sampler=curve.method.name,
        batch_size=size,
        updates=curve.total_updates,
        samples=curve.total_samples,
        true_loss=Spread.of(curve.final.true_loss),
        excess=Spread.of(curve.final.true_loss - (math.nan if full is None else full)),
        distance=Spread.of(curve.final.distance),
        rearranging=Spread.of(curve.final.rearranging),
        mean_loss=Spread.of(curve.mean_loss.double().numpy()),
        mean_loss_error=float(curve.mean_loss_error.max()),
        optimal_mean_loss=math.nan if known is None else known.batch_loss(size),
    )


def reference_in_words(outcome: Outcome) -> list[str]:
    """Describe the reference for the losses in sentences."""
    settings, reference = outcome.settings, outcome.reference
    where = f"{settings.n} samples in {pluralize(settings.dim, 'dimension')}"
    if reference.known is not None:
        kind = {"simplex": "the simplex", "cross_polytope": "the cross-polytope"}[reference.known.kind]
        return [f"The optimum of {where} is {kind}: loss {reference.full_loss:.7f}."]
    unknown = f"For {where} no optimum is known in closed form"
    if reference.full_loss is None:
        return [f"{unknown}, and there are too many samples to look for it: no excess is reported."]
    sentences = [
        f"{unknown}. Excess is above {reference.full_loss:.7f}, the least loss that {settings.restarts} restarts of "
        "L-BFGS and all runs found: an upper bound of the optimum, so a lower bound of the excess."
    ]
    for size, gap in reference.other_minimisers.items():
        result = "has the same loss of everything: no difference between the two minimisers is seen."
        if abs(gap) >= 1e-6:
            result = f"has a loss of everything {gap:.2e} above it: as far as restarts show, the two minimisers differ."
        sentences.append(f"The best minimiser found of the mean over all batches of {size} {result}")
    return sentences


def show(outcome: Outcome) -> None:
    """Print the table and the description of the reference."""
    rows = [
        {
            "": row.label,
            "batch": str(row.batch_size),
            "updates": f"{row.updates:,}",
            "samples": f"{row.samples:,}",
            "true loss": f"{row.true_loss.mean:.5f}",
            "[min, max]": f"[{row.true_loss.low:.5f}, {row.true_loss.high:.5f}]",
            "excess": f"{row.excess.mean:.5f}" if row.excess.known else "-",
            "distance": f"{row.distance.mean:.4f}" if row.distance.known else "-",
            "rearranging": f"{row.rearranging.mean:.4f}" if row.rearranging.known else "-",
            "mean loss of all batches": f"{row.mean_loss.mean:.5f}"
            + (f" (estimated, standard error {row.mean_loss_error:.1e})" if row.mean_loss_error else ""),
        }
        for row in (row_of(curve, outcome) for curve in outcome.curves)
    ]
    lines = align_columns([list(rows[0]), *(list(row.values()) for row in rows)], num_names=1)
    for line in [*lines, *reference_in_words(outcome)]:
        sys.stdout.write(line + "\n")
