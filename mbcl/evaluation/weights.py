"""The weights to evaluate: of a checkpoint, of an export, or an experiment's initial weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mbcl import export
from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.setup import channels_of, load_model, model_of
from mbcl.errors import CheckpointError, ConfigError, pluralize
from mbcl.io.store import Store
from mbcl.models import ContrastiveModel

INITIAL = "epoch_000000"
"""The name of the initial weights; the published evaluation calls them epoch -1."""


@dataclass(frozen=True)
class Weights:
    """Weights of an experiment's model.

    Args:
        name: the checkpoint's name.
        sha256: of the stored file; empty for initial weights, which the experiment determines.
        experiment: the experiment that defines the model.
        state: the model's state dict; None for the initial weights.
        in_channels: channels of the images; None for the initial weights, which take any number.
    """

    name: str
    sha256: str
    experiment: Experiment
    state: dict[str, Tensor] | None = None
    in_channels: int | None = None

    def model(self, *, in_channels: int) -> ContrastiveModel:
        """Build the model in evaluation mode, for images of ``in_channels`` channels.

        Raises:
            ConfigError: if the weights are for images with another number of channels.
            CheckpointError: if the weights belong to another model.
        """
        if self.state is None:
            return model_of(self.experiment, in_channels=in_channels).eval()
        if self.in_channels != in_channels:
            raise ConfigError(
                f"data: found images of {pluralize(in_channels, 'channel')}, but checkpoint {self.name} was trained on "
                f"{self.in_channels}"
            )
        return load_model(self.experiment, self.state, in_channels=in_channels).eval()


def find_weights(store: Store, checkpoint: str | None = None) -> Weights:
    """Load the weights in a folder of a training or of an export.

    Args:
        store: the folder.
        checkpoint: name of a training's checkpoint; the newest valid one by default.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if the export is damaged.
    """
    if checkpoint is None and store.exists(export.RECORD_FILE):
        exported = export.read(store)
        return Weights(
            exported.checkpoint, exported.sha256, exported.experiment, exported.weights, exported.in_channels
        )
    stored = checkpoints.choose(store, checkpoint)
    experiment = validate(Experiment, stored.meta["experiment"], f"{store.uri}: its checkpoint")
    state = stored.state["model"]
    return Weights(stored.name, stored.sha256, experiment, state, channels_of(state))


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


def initial_weights(store: Store) -> Weights:
    """Return the initial weights of a training, which the experiment in its checkpoints determines.

    Raises:
        CheckpointError: if it has no valid checkpoint.
    """
    return Weights(INITIAL, "", find_weights(store).experiment)
