"""Evaluation: a checkpoint and settings in, metrics out. The same function for one checkpoint and for a sweep."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from torch import Tensor

from mbcl.configuration import validate
from mbcl.dist import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.embed import ViewKey, embed
from mbcl.engine.prepare import load_data, model_of
from mbcl.errors import ConfigError
from mbcl.experiment import Evaluation, Experiment
from mbcl.metrics import retrieval
from mbcl.seeding import derive
from mbcl.storage import Store, read_text, write_text

EVALUATION_FILE = "evaluation.json"


def experiment_of(store: Store, checkpoint: str | None = None) -> Experiment:
    """The experiment that a checkpoint belongs to.

    Raises:
        CheckpointError: if there is no whole checkpoint.
    """
    return validate(
        Experiment, checkpoints.choose(store, checkpoint).meta["experiment"], f"{store.uri}: its checkpoint"
    )


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
    data_dir: str | None = None,
    out: Store | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint of a trial and write ``evaluation.json``.

    Returns at once what that file holds if it was made from the same checkpoint with the same settings.

    Args:
        store: the trial's folder.
        checkpoint: which one; the last good one by default.
        settings: what to measure; the experiment's own by default.
        device: where to compute.
        data_dir: where the data lie on this machine; as in training by default.
        out: where ``evaluation.json`` goes; beside the checkpoints by default.
        force: evaluate even if that was done already.

    Returns:
        Metrics by their contract names, for example ``retrieval/u2v/top1``.

    Raises:
        CheckpointError: if the folder holds no whole checkpoint.
        DataError: if the data are missing.
    """
    found = checkpoints.choose(store, checkpoint)
    experiment = validate(Experiment, found.meta["experiment"], f"{store.uri}: its checkpoint")
    settings = settings or experiment.evaluation
    asked = {
        "checkpoint": found.name,
        "sha256": found.sha256,
        "experiment": experiment.digest,
        "settings": settings.model_dump(mode="json"),
        "data_dir": data_dir,
    }
    out = out or store
    done = None if force else _read(out)
    if done is not None and done.get("asked") == asked:
        return dict(done["metrics"])
    start = time.perf_counter()
    metrics = _measure(experiment, found.state["model"], settings, device=device, data_dir=data_dir)
    content = {"asked": asked, "metrics": metrics, "seconds": time.perf_counter() - start}
    write_text(out, EVALUATION_FILE, json.dumps(content, indent=1, allow_nan=False))
    return metrics


def _measure(
    experiment: Experiment, weights: dict[str, Tensor], settings: Evaluation, *, device: str, data_dir: str | None
) -> dict[str, float]:
    data_config = experiment.data if data_dir is None else experiment.data.model_copy(update={"dir": data_dir})
    data = load_data(data_config, seed=experiment.seed)
    images = {"test": data.test, "validation": data.validation, "train": data.train}[settings.split]
    world = World(rank=0, size=1, device=usable_device(device))
    model = model_of(experiment, in_channels=images.channels)
    model.load_state_dict(weights)
    shard = embed(
        model.to(world.device),
        images.to(world.device),
        # Not the views of training or validation; the same for every setting of one seed, so that they pair.
        ViewKey(derive(experiment.seed, f"{settings.split} evaluation views")),
        mode="eval",
        batch_size=settings.batch_size,
        world=world,
    )
    found = retrieval(shard.z1, shard.z2, similarity=settings.similarity)
    return {f"retrieval/{key}": value for key, value in found.items()}


def _read(store: Store) -> dict[str, Any] | None:
    """What an earlier evaluation left; None if there is none or it is damaged, and is then made again."""
    try:
        content = json.loads(read_text(store, EVALUATION_FILE))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("metrics"), dict) else None
