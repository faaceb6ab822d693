"""A synthetic study as a trial of a sweep: its files and its final metrics.

config.yaml     the configuration with all parameters
metrics.jsonl   one line per point of the curve; "epoch" counts steps of the study from 1, "step" counts updates
points.npz      start and x, (2, N, D) float64: both views at the start and at the end
"""

from __future__ import annotations

import json
import math

import numpy as np

from mbcl.config.yaml_reader import dump_yaml
from mbcl.engine.metrics_log import CONFIG_FILE, METRICS_FILE
from mbcl.errors import pluralize
from mbcl.io.npz import to_npz
from mbcl.io.store import Store, write_text
from mbcl.synthetic.experiment import SyntheticExperiment
from mbcl.synthetic.optima import optimum
from mbcl.synthetic.records import Measured, Outcome
from mbcl.synthetic.study import MAX_MINIMISED, run

Metrics = dict[str, float | int | None]
DISTANCE, EXCESS = "synthetic/distance", "synthetic/excess"


def run_synthetic_trial(experiment: SyntheticExperiment, store: Store) -> Metrics:
    """Run the study from the start and write its files to the trial's folder, the same for the same experiment.

    Returns:
        The final metrics; None for a measure that was not taken.

    Raises:
        ConfigError: if the sampler does not fit, or the points lose their directions.
    """
    config = dump_yaml(experiment.resolved())
    write_text(store, CONFIG_FILE, f"# The resolved experiment.\n{config}")
    outcome = run(experiment.settings, methods=[experiment.build_method()], other_minimisers=False)
    write_text(store, METRICS_FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in _rows(outcome)))
    (curve,) = outcome.curves
    points = to_npz(start=outcome.start_2SND[:, 0].numpy(), x=curve.x_2SND[:, 0].numpy())
    store.write_bytes("points.npz", points)
    return {
        **_measures(curve.final, reference_loss(outcome), 0),
        "synthetic/mean_loss": float(curve.mean_loss[0]),
        "synthetic/mean_loss_error": float(curve.mean_loss_error[0]),
        **_work(outcome.settings.steps, curve.total_updates, curve.total_samples),
    }


def reference_loss(outcome: Outcome) -> float | None:
    """Return the reference loss: the optimum's, or the minimum over restarts alone, which all trials share."""
    reference = outcome.reference
    return reference.full_loss if reference.known is not None else reference.restarted_loss


def unknown_optimum(experiment: SyntheticExperiment) -> str:
    """Return a note on the measures that need a known optimum; empty if one is known."""
    settings = experiment.settings
    if optimum(settings.n, settings.dim) is not None:
        return ""
    size = f"{settings.n} samples in {pluralize(settings.dim, 'dimension')}"
    where = f"no optimum of {size} is known in closed form, so there is no"
    if settings.n > MAX_MINIMISED:
        return f"{where} {DISTANCE}, and above {MAX_MINIMISED} samples no {EXCESS}"
    return f"{where} {DISTANCE}, and {EXCESS} is above the least loss of {settings.restarts} restarts"


def _rows(outcome: Outcome) -> list[Metrics]:
    """Return one row per point of the curve, with all keys."""
    (curve,) = outcome.curves
    work = np.stack([curve.steps + 1, curve.updates, curve.samples], axis=1).tolist()
    return [
        {
            "epoch": steps,
            "step": updates,
            **_work(steps, updates, samples),
            "synthetic/batch_loss": float(curve.batch_loss[0, point]),
            **_measures(curve.course, reference_loss(outcome), (0, point)),
        }
        for point, (steps, updates, samples) in enumerate(work)
    ]


def _work(steps: int, updates: int, samples: int) -> Metrics:
    return {"synthetic/steps": steps, "synthetic/updates": updates, "synthetic/samples": samples}


def _measures(measured: Measured, reference: float | None, index: int | tuple[int, int]) -> Metrics:
    true_loss = float(measured.true_loss[index])
    values = {
        DISTANCE: float(measured.distance[index]),
        EXCESS: math.nan if reference is None else true_loss - reference,
        "synthetic/true_loss": true_loss,
        "synthetic/rearranging": float(measured.rearranging[index]),
    }
    return {key: None if math.isnan(value) else value for key, value in values.items()}
