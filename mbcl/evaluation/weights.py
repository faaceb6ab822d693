"""The weights to evaluate: of a checkpoint, of an export, or an experiment's initial weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mbcl import export
from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.setup import channels_of
from mbcl.errors import CheckpointError, ConfigError
from mbcl.export import Weights
from mbcl.io.store import Store
from mbcl.models import digest_of_weights

INITIAL = "epoch_000000"
"""The name of the initial weights; the published evaluation calls them epoch -1."""


def find_weights(store: Store, checkpoint: str | None = None) -> Weights:
    """Load the weights in a folder of a training or of an export.

    Args:
        store: the folder.
        checkpoint: name of a training's checkpoint; the newest valid one by default. ``INITIAL`` for the initial
            weights, which the experiment in the newest one determines.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if the export is damaged.
    """
    if checkpoint == INITIAL:
        newest = find_weights(store)
        location = newest.experiment.encoder.get("weights")
        sha256 = digest_of_weights(location) if location else ""
        return Weights(INITIAL, sha256, newest.experiment, sources=newest.sources)
    if checkpoint is None and store.exists(export.RECORD_FILE):
        return export.read(store)
    stored = checkpoints.choose(store, checkpoint)
    experiment = validate(Experiment, stored.meta["experiment"], f"{store.uri}: its checkpoint")
    state = stored.state["model"]
    sources = dict(stored.meta.get("facts", {}).get("sources", {}))
    return Weights(stored.name, stored.sha256, experiment, state, channels_of(stored.meta, state), sources)


def of_epochs(store: Store, epochs: Sequence[int]) -> list[str]:
    """Return the names of a training's checkpoints after each of ``epochs``; 0 or -1 are the initial weights.

    Raises:
        CheckpointError: if one does not exist; the message lists the existing ones.
        ConfigError: if the folder is an export.
    """
    if store.exists(export.RECORD_FILE):
        raise ConfigError(f"--epochs: {store.uri} is an export, which holds one checkpoint")
    existing = [name for name in checkpoints.names(store) if re.fullmatch(r"epoch_\d+", name)]
    if not existing:
        raise checkpoints.none_in(store)
    names = [INITIAL if epoch in (0, -1) else checkpoints.name_of(epoch) for epoch in epochs]
    for name, epoch in zip(names, epochs, strict=True):
        if name != INITIAL and name not in existing:
            allowed = ", ".join(str(int(existing_name.removeprefix("epoch_"))) for existing_name in existing)
            raise CheckpointError(
                f"--epochs: no checkpoint after epoch {epoch} in {store.uri}; allowed: -1, 0, {allowed}"
            )
    return list(dict.fromkeys(names))
