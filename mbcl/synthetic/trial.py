"""One synthetic study as the work of a trial: its files, and the metrics that its row has.

config.yaml     what was asked for, with all parameters
metrics.jsonl   one line a point of the curve: a step stands as an epoch, an update as a step of a training
points.npz      start and x, (2, N, D) float64: both views where they began and where they ended
"""

from __future__ import annotations

import io
import json
import math

import numpy as np
import yaml

from mbcl.engine.metrics_log import CONFIG_FILE, METRICS_FILE
from mbcl.io.store import Store, write_text
from mbcl.synthetic.experiment import SyntheticExperiment
from mbcl.synthetic.optima import optimum
from mbcl.synthetic.records import Measured, Outcome
from mbcl.synthetic.study import MOST_MINIMISED, run

Metrics = dict[str, float | int | None]
DISTANCE, EXCESS = "synthetic/distance", "synthetic/excess"


def run_synthetic_trial(experiment: SyntheticExperiment, store: Store) -> Metrics:
    """Run it from its start, and write its files. The same experiment gives the same files.

    Args:
        experiment: what is asked for.
        store: the trial's folder.

    Returns:
        The final metrics; what is not measured is None.

    Raises:
        ConfigError: if the sampler does not fit, or the points lose their directions.
    """
    config = yaml.safe_dump(experiment.resolved(), sort_keys=False)
    write_text(store, CONFIG_FILE, f"# The resolved experiment.\n{config}")
    outcome = run(experiment.settings, methods=[experiment.build_method()], other_minimisers=False)
    write_text(store, METRICS_FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in _rows(outcome)))
    (curve,) = outcome.curves
    stream = io.BytesIO()
    np.savez_compressed(stream, start=outcome.start_2SND[:, 0].numpy(), x=curve.x_2SND[:, 0].numpy())
    store.write_bytes("points.npz", stream.getvalue())
    mean_loss = {
        "synthetic/mean_loss": float(curve.mean_loss.mean_R[0]),
        "synthetic/mean_loss_error": float(curve.mean_loss.error_R[0]),
    }
    work = _work(outcome.settings.steps, curve.total_updates, curve.total_samples)
    return {**_measures(curve.final, least(outcome), 0), **mean_loss, **work}


def least(outcome: Outcome) -> float | None:
    """What the loss is compared with: the optimum, or what restarts alone found, so that trials have the same."""
    reference = outcome.reference
    return reference.full_loss if reference.known is not None else reference.restarted_loss


def unknown_optimum(experiment: SyntheticExperiment) -> str:
    """A line that says what is not measured because no optimum is known; empty if one is."""
    settings = experiment.settings
    if optimum(settings.n, settings.dim) is not None:
        return ""
    dimensions = f"{settings.dim} dimension{'s' * (settings.dim > 1)}"
    where = f"no optimum of {settings.n} samples in {dimensions} is known in closed form, so there is no"
    if settings.n > MOST_MINIMISED:
        return f"{where} {DISTANCE}, and above {MOST_MINIMISED} samples no {EXCESS}"
    return f"{where} {DISTANCE}, and {EXCESS} is above the least loss of {settings.restarts} restarts"


def _rows(outcome: Outcome) -> list[Metrics]:
    """One row a point, with every key."""
    (curve,) = outcome.curves
    return [
        {
            "epoch": int(curve.steps[point]) + 1,
            "step": int(curve.updates[point]),
            **_work(int(curve.steps[point]) + 1, int(curve.updates[point]), int(curve.samples[point])),
            "synthetic/batch_loss": float(curve.batch_loss[0, point]),
            **_measures(curve.course, least(outcome), (0, point)),
        }
        for point in range(len(curve.steps))
    ]


def _work(steps: int, updates: int, samples: int) -> Metrics:
    return {"synthetic/steps": steps, "synthetic/updates": updates, "synthetic/samples": samples}


def _measures(measured: Measured, least: float | None, place: int | tuple[int, int]) -> Metrics:
    true_loss = float(measured.true_loss[place])
    found = {
        DISTANCE: float(measured.distance[place]),
        EXCESS: math.nan if least is None else true_loss - least,
        "synthetic/true_loss": true_loss,
        "synthetic/rearranging": float(measured.rearranging[place]),
    }
    return {key: None if math.isnan(value) else value for key, value in found.items()}
