"""The report of a synthetic study.

synthetic.json  the settings
table.csv       one row for each method, against the optimum
curves.csv      one row for each method, seed and curve point
points.npz      starts, ends and Gram matrices
plots/*.png, plots/*.svg
report.html
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

import numpy as np

from mbcl import __version__
from mbcl.errors import pluralize
from mbcl.io.npz import to_npz
from mbcl.io.store import Store, write_text
from mbcl.report.pictures import Picture
from mbcl.report.synthetic_figures import draw
from mbcl.report.tables import csv_text
from mbcl.report.templates import render_page
from mbcl.report.wording import listed, number
from mbcl.synthetic.records import MEASURES, RECORD, Outcome
from mbcl.synthetic.table import Row, reference_in_words, row_of

MAX_STORED = 1024
"""Maximum number of samples with stored Gram matrices. They follow from the points, which are always stored."""


def write(store: Store, outcome: Outcome) -> None:
    """Write tables, points, figures and page of a study that :func:`mbcl.synthetic.study.run` ran."""
    # The record goes first: it marks the folder as a synthetic study even if writing is interrupted.
    write_text(store, RECORD, json.dumps({"version": __version__, **asdict(outcome.settings)}, indent=1) + "\n")
    rows = [row_of(curve, outcome) for curve in outcome.curves]
    write_text(store, "table.csv", table_csv(rows))
    write_text(store, "curves.csv", curves_csv(outcome))
    store.write_bytes("points.npz", _points(outcome))
    pictures = draw(outcome)
    for picture in pictures:
        store.write_bytes(f"plots/{picture.name}.png", picture.png)
        write_text(store, f"plots/{picture.name}.svg", picture.svg_file)
    write_text(store, "report.html", page(outcome, rows, pictures))


def table_csv(rows: list[Row]) -> str:
    """Return ``table.csv``: mean, minimum and maximum over the seeds of every measure; empty if not measured."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        lines.append({})
        for name, value in asdict(row).items():
            spread = isinstance(value, dict)
            lines[-1] |= {f"{name}/{part}": number for part, number in value.items()} if spread else {name: value}
    return csv_text(list(lines[0]), lines)


def curves_csv(outcome: Outcome) -> str:
    """Return ``curves.csv``: one row for each method, seed and curve point."""
    rows = [
        {
            "label": curve.method.label,
            "sampler": curve.method.name,
            "batch_size": curve.method.sampler.batch_size,
            "seed": seed,
            "step": int(curve.steps[point]),
            "updates": int(curve.updates[point]),
            "samples": int(curve.samples[point]),
            "batch_loss": float(curve.batch_loss[index, point]),
            **{measure: float(getattr(curve.course, measure)[index, point]) for measure in MEASURES},
        }
        for curve in outcome.curves
        for index, seed in enumerate(outcome.settings.seeds)
        for point in range(len(curve.steps))
    ]
    return csv_text(list(rows[0]), rows)


def _points(outcome: Outcome) -> bytes:
    """Return ``points.npz``: ``start``; by method ``x`` (2, S, N, D) and ``z`` (S, N, N), u v^T; ``optimum`` (N, N)."""
    arrays: dict[str, Any] = {
        "start": outcome.start_2SND.numpy(),
        "seeds": np.array(outcome.settings.seeds),
        "labels": np.array([curve.method.label for curve in outcome.curves]),
    }
    store_gram = outcome.settings.n <= MAX_STORED
    for index, curve in enumerate(outcome.curves):
        arrays[f"x{index}"] = curve.x_2SND.numpy()
        if store_gram:
            arrays[f"z{index}"] = curve.gram().numpy()
    if outcome.reference.known is not None and store_gram:
        arrays["optimum"] = outcome.reference.known.gram().numpy()
    return to_npz(**arrays)


def headline(outcome: Outcome, rows: list[Row]) -> str:
    """Summarise the study in one sentence that claims only what its numbers support."""
    if not rows[0].excess.known:
        nearest = min(rows, key=lambda row: row.true_loss.mean)
        return f"The least mean loss of everything is that of {nearest.label}, {nearest.true_loss.mean:.5f}."
    ranked = sorted(rows, key=lambda row: row.excess.mean)
    results = [f"{row.label} {number(row.excess.mean)}" for row in ranked]
    above = "the optimum" if outcome.reference.known else "the least loss known"
    return f"Mean loss above {above} after {pluralize(outcome.settings.steps, 'step', ',')}: {listed(results)}."


def command_of(outcome: Outcome) -> str:
    """Return the command line that runs the study again."""
    settings = outcome.settings
    arguments = ["mbcl", "synthetic", "--n", settings.n, "--dim", settings.dim, "--batch-size", *settings.batch_sizes]
    arguments += ["--steps", settings.steps, "--samplers", *settings.samplers, "--seeds", len(settings.seeds)]
    arguments += ["--first-seed", settings.seeds[0]] * (settings.seeds[0] != 0) + ["--lr", settings.lr]
    arguments += ["--accumulate", settings.accumulate] if settings.accumulate else []
    arguments += ["--equal-init"] * settings.equal_init + ["--log-every", settings.log_every]
    arguments += ["--published-points"] * settings.published_points + ["--restarts", settings.restarts]
    return shlex.join([*map(str, arguments), "--out", "DIR"])


def page(outcome: Outcome, rows: list[Row], pictures: list[Picture]) -> str:
    """Render ``report.html``, a self-contained page."""
    settings = outcome.settings
    context = {
        "settings": settings,
        "rows": rows,
        "headline": headline(outcome, rows),
        "reference": reference_in_words(outcome),
        "known": outcome.reference.known,
        "estimated": any(row.mean_loss_error for row in rows),
        "curves": [picture for picture in pictures if picture.name.startswith("curve")],
        "maps": [picture for picture in pictures if picture.name.endswith("_bar")],
        "kept": [
            curve.method.label
            for curve in outcome.curves
            if settings.accumulate and (curve.method.one_update or curve.method.exhaustive)
        ],
        "command": command_of(outcome),
    }
    return render_page("synthetic.html", context)
