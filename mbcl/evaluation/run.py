"""From weights and settings to ``evaluation.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mbcl.engine.evaluable import check_evaluation
from mbcl.engine.prepare import check_takes, load_data
from mbcl.errors import ConfigError
from mbcl.evaluation import classes, corrupted, diagnostics, retrieval
from mbcl.evaluation.baselines import BASELINES, Kept, baseline
from mbcl.evaluation.subject import Representation, Subject
from mbcl.evaluation.weights import INITIAL, Weights, find_weights, initial_weights
from mbcl.evaluation_settings import Metric
from mbcl.experiment import Data, Evaluation
from mbcl.storage import Store, read_text, write_text

EVALUATION_FILE = "evaluation.json"

_MEASURES: Mapping[Metric, Callable[[Subject], dict[str, float]]] = {
    "retrieval": retrieval.measure,
    "corrupted": corrupted.measure,
    "knn": classes.measure_knn,
    "probe": classes.measure_probe,
    "repr": diagnostics.measure,
}


def usable_device(name: str) -> torch.device:
    """The device of this name, if this machine has it.

    Raises:
        ConfigError: if there is no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def evaluate(
    store: Store,
    *,
    checkpoint: str | None = None,
    settings: Evaluation | None = None,
    device: str = "cpu",
    data: Data | None = None,
    data_dir: str | None = None,
    out: Store | None = None,
    baselines: Store | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Evaluate weights and write ``evaluation.json``.

    Returns at once what that file holds if it was made from the same weights with the same settings.

    Args:
        store: the folder of a training or of an export.
        checkpoint: which one of a training; the last good one by default, the initial weights as ``INITIAL``.
        settings: what to measure; the experiment's own by default.
        device: where to compute.
        data: the images, if others than those of training.
        data_dir: where the data lie on this machine; as in training by default.
        out: where ``evaluation.json`` goes; ``store`` by default.
        baselines: where metrics of baselines are kept for others; a folder in ``out`` by default.
        force: evaluate even if that was done already.

    Returns:
        Metrics by their contract names, for example ``retrieval/u2v/top1``; those of baselines under
        ``baseline/KIND/``.

    Raises:
        CheckpointError: if the folder holds no whole checkpoint.
        DataError: if the data are missing.
        ConfigError: if settings and data do not go together.
    """
    weights = initial_weights(store) if checkpoint == INITIAL else find_weights(store, checkpoint)
    experiment = weights.experiment
    settings = settings or experiment.evaluation
    asked = {
        "checkpoint": weights.name,
        "sha256": weights.sha256,
        "experiment": experiment.digest,
        "settings": settings.model_dump(mode="json"),
        "data": None if data is None else data.model_dump(mode="json"),
        "data_dir": data_dir,
    }
    out = out or store
    done = None if force else _read(out)
    if done is not None and done.get("asked") == asked:
        return dict(done["metrics"])
    start = time.perf_counter()
    chosen = data or experiment.data
    chosen = chosen if data_dir is None else chosen.model_copy(update={"dir": data_dir})
    metrics = _measure(weights, settings, chosen, device=device, kept=baselines or out.child(BASELINES))
    content = {"asked": asked, "metrics": metrics, "seconds": time.perf_counter() - start}
    write_text(out, EVALUATION_FILE, json.dumps(content, indent=1, allow_nan=False))
    return metrics


def _measure(weights: Weights, settings: Evaluation, data: Data, *, device: str, kept: Store) -> dict[str, float]:
    """Metrics of the weights, then of the baselines."""
    where, experiment = usable_device(device), weights.experiment
    images = load_data(data, seed=experiment.seed)
    check_evaluation(settings, images, name=data.name)
    in_channels = images.train.channels
    model = weights.model(in_channels=in_channels)
    check_takes(model, experiment, images.test)
    model = model.to(where)

    def measured(representation: Representation) -> dict[str, float]:
        subject = Subject(representation, images, data=data, settings=settings, seed=experiment.seed, device=where)
        return {key: value for metric in settings.metrics for key, value in _MEASURES[metric](subject).items()}

    metrics = measured(model)
    own = settings.model_dump(mode="json", exclude={"baselines"})
    asked = {"data": data.model_dump(mode="json"), "settings": own, "device": where.type}
    for kind in settings.baselines:
        earlier = Kept(kept, kind, experiment, asked)
        found = earlier.read()
        if found is None:
            found = measured(baseline(kind, experiment, in_channels=in_channels, device=where))
            earlier.write(found)
        metrics |= {f"baseline/{kind}/{key}": value for key, value in found.items()}
    return metrics


def _read(store: Store) -> dict[str, Any] | None:
    """What an earlier evaluation left; None if there is none or it is damaged, and is then made again."""
    try:
        content = json.loads(read_text(store, EVALUATION_FILE))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("metrics"), dict) else None
