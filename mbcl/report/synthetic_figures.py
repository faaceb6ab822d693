"""The figures of a synthetic study: curves against three counts of work, and Gram matrices as heat maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.report import pictures as figures
from mbcl.report.pictures import GRID, INK, MUTED, Picture, log_scale, new_axes, new_row, render
from mbcl.report.wording import number
from mbcl.synthetic.pairing import opposites
from mbcl.synthetic.records import Curve, Outcome

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

Array = NDArray[np.float64]

MAX_DRAWN = 512
"""Maximum number of samples in a heat map; further samples are not drawn."""
MAX_VECTOR_CELLS = 32
"""Maximum number of samples for vector cells; a larger heat map is one raster image, which keeps the SVG small."""
LOG_RATIO = 4
"""Ratio of the methods' final counts of work above which the axis is logarithmic."""
COUNTS = (("steps", "steps"), ("updates", "gradient updates"), ("samples", "samples seen"))


_DISTANCES = {
    "distance": ("Distance to the optimum", "Frobenius norm, the least over rotations and namings of the samples."),
    "rearranging": (
        "The published norm, after rearranging each row",
        "It does not see positives that are matched wrongly; it is shown for comparison.",
    ),
}
"""The titles and notes of the distances."""


def draw(outcome: Outcome) -> list[Picture]:
    """Draw every figure for which the outcome has data."""
    with figures.style():
        pictures = [_true_loss(outcome), _batch_loss(outcome)]
        for key, (title, note) in _DISTANCES.items():
            values = [getattr(curve.course, key) for curve in outcome.curves]
            if not np.isnan(values[0]).all():
                pictures.append(_curves(outcome, f"curve_{key}", values, title=title, label=key, log=True, note=note))
        return pictures + _maps(outcome)


def _true_loss(outcome: Outcome) -> Picture:
    loss = outcome.reference.full_loss
    reference = "the optimum" if outcome.reference.known else "the least loss known"
    return _curves(
        outcome,
        "curve_true_loss",
        [curve.course.true_loss - (loss or 0.0) for curve in outcome.curves],
        title="Loss of everything" if loss is None else f"Loss of everything, above {reference}",
        label="true loss" if loss is None else "excess of true loss",
        log=loss is not None,
    )


def _batch_loss(outcome: Outcome) -> Picture:
    return _curves(
        outcome,
        "curve_batch_loss",
        [curve.batch_loss for curve in outcome.curves],
        title="Loss of the last batch of a step, before its update",
        label="batch loss",
        log=False,
        note="It says how hard the batches are; batches of different sizes do not compare.",
    )


def _curves(
    outcome: Outcome, name: str, values: Sequence[Array], *, title: str, label: str, log: bool, note: str = ""
) -> Picture:
    """Draw one measure against each of the three counts of work."""
    figure, row = new_row(10.2, 3.2 + 0.17 * (len(outcome.curves) // 4), len(COUNTS))
    for axes, (count, axis_label) in zip(row, COUNTS, strict=True):
        for index, (curve, value_SL) in enumerate(zip(outcome.curves, values, strict=True)):
            low_high = (value_SL.min(axis=0), value_SL.max(axis=0)) if len(value_SL) > 1 else None
            x_L = getattr(curve, count) + (count == "steps")
            figures.draw_curve(axes, index, curve.method.label, x_L, value_SL.mean(axis=0), low_high)
        if log and any((value_SL > 0).any() for value_SL in values):
            log_scale(axes, "y")
        ends = [int(getattr(curve, count)[-1]) for curve in outcome.curves]
        if max(ends) > LOG_RATIO * min(ends):
            log_scale(axes, "x")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_xlabel(axis_label, color=INK)
    row[0].set_ylabel(label, color=INK)
    figures.add_legend(figure, row[0], columns=4)
    several = len(outcome.settings.seeds) > 1
    band = "Mean over the seeds; the band reaches from the lowest to the highest." if several else "One seed."
    means = [f"{c.method.label}: {number(float(v[:, -1].mean()))}" for c, v in zip(outcome.curves, values, strict=True)]
    return render(
        figure,
        name,
        title=title,
        caption=f"{band} The same points against three counts of work. {note}".rstrip(),
        alt=f"{title}, at the end. " + "; ".join(means),
    )


def _maps(outcome: Outcome) -> list[Picture]:
    """Draw heat maps of the first seed's Gram matrices and of the optimum, without and with a colour bar."""
    seed = outcome.settings.seeds[0]
    pictures = []
    if outcome.reference.known is not None:
        pictures += _map("gram_optimum", outcome.reference.known.gram().numpy(), "the optimum", "")
    for index, curve in enumerate(outcome.curves):
        slug = re.sub(r"[^a-z0-9]+", "_", curve.method.label.lower()).strip("_")
        z_NN, note = _ordered(curve, outcome)
        pictures += _map(f"gram_{index}_{slug}", z_NN, f"{curve.method.label}, seed {seed}", note)
    return pictures


def _ordered(curve: Curve, outcome: Outcome) -> tuple[Array, str]:
    """Return the Gram matrix of the first seed, for the cross-polytope with opposite samples next to each other."""
    z_NN = curve.gram()[0].numpy()
    known = outcome.reference.known
    if known is None or known.kind == "simplex":
        return z_NN, ""
    partner_N = opposites(z_NN)
    order = np.array([sample for a, b in enumerate(partner_N) if a < b for sample in (a, b)])
    return z_NN[np.ix_(order, order)], " Samples are ordered so that opposites stand beside each other."


def _map(name: str, z_NN: Array, title: str, note: str) -> list[Picture]:
    if len(z_NN) > MAX_DRAWN:
        note += f" The first {MAX_DRAWN} of {len(z_NN)} samples."
        z_NN = z_NN[:MAX_DRAWN, :MAX_DRAWN]
    diagonal = torch.from_numpy(z_NN).diagonal()
    off = z_NN[~np.eye(len(z_NN), dtype=bool)]
    pictures = []
    for bar in (False, True):
        figure, axes = new_axes(3.6 if bar else 3.0, 3.0)
        image: ScalarMappable
        if len(z_NN) <= MAX_VECTOR_CELLS:
            image = axes.pcolormesh(z_NN, cmap="RdBu_r", vmin=-1, vmax=1)
            axes.invert_yaxis()
        else:
            image = axes.imshow(z_NN, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
        axes.set_aspect("equal")
        axes.set_axis_off()
        if bar:
            scale = figure.colorbar(image, ax=axes, shrink=0.85)
            scale.outline.set_visible(False)
            scale.ax.tick_params(colors=MUTED, labelcolor=INK, length=3)
        pictures.append(
            render(
                figure,
                name + "_bar" * bar,
                title=title,
                caption=f"u vᵀ at the end: a row for each u, a column for each v.{note}",
                alt=f"Gram matrix of {title}: diagonal {number(float(diagonal.mean()))} on average, "
                f"elsewhere {number(float(off.min()))} to {number(float(off.max()))}",
            )
        )
    return pictures
