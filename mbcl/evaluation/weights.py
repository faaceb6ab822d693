"""What can be evaluated: a checkpoint, an export, or an experiment's initial weights."""

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
from mbcl.errors import CheckpointError, ConfigError
from mbcl.io.store import Store
from mbcl.models import ContrastiveModel

INITIAL = "epoch_000000"
"""The name of the initial weights; the published evaluation calls them epoch -1."""


@dataclass(frozen=True)
class Weights:
    """Weights of an experiment's model.

    Args:
        name: the checkpoint's.
        sha256: of the stored file; empty for initial weights, which follow from the experiment.
        experiment: whose model it is.
        state: the model's state dict; None for the initial weights.
        in_channels: of the images; None for the initial weights, which take any.
    """

    name: str
    sha256: str
    experiment: Experiment
    state: dict[str, Tensor] | None = None
    in_channels: int | None = None

    def model(self, *, in_channels: int) -> ContrastiveModel:
        """The model in evaluation mode, for images of so many channels.

        Raises:
            ConfigError: if it takes images of other channels, or the weights are of another model.
        """
        if self.state is None:
            return model_of(self.experiment, in_channels=in_channels).eval()
        if self.in_channels != in_channels:
            raise ConfigError(
                f"data: found images of {in_channels} channels, but checkpoint {self.name} was trained on "
                f"{self.in_channels}"
            )
        return load_model(self.experiment, self.state, in_channels=in_channels).eval()


def find_weights(store: Store, checkpoint: str | None = None) -> Weights:
    """The weights in a folder: that of a training, or of an export.

    Args:
        store: the folder.
        checkpoint: which one of a training; the last good one by default.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if it is a damaged export.
    """
    if checkpoint is None and store.exists(export.RECORD_FILE):
        found = export.read(store)
        return Weights(found.checkpoint, found.sha256, found.experiment, found.weights, found.in_channels)
    stored = checkpoints.choose(store, checkpoint)
    experiment = validate(Experiment, stored.meta["experiment"], f"{store.uri}: its checkpoint")
    state = stored.state["model"]
    return Weights(stored.name, stored.sha256, experiment, state, channels_of(state))


def of_epochs(store: Store, epochs: Sequence[int]) -> list[str]:
    """The names of a training's checkpoints after so many epochs each; 0 or -1 are the initial weights.

    Raises:
        CheckpointError: if one is not there; the text names those that are.
    """
    if store.exists(export.RECORD_FILE):
        raise ConfigError(f"--epochs: {store.uri} is an export, which holds one checkpoint")
    present = [name for name in checkpoints.names(store) if re.fullmatch(r"epoch_\d+", name)]
    if not present:
        raise checkpoints.none_in(store)
    wanted = [INITIAL if epoch in (0, -1) else checkpoints.name_of(epoch) for epoch in epochs]
    for name, epoch in zip(wanted, epochs, strict=True):
        if name != INITIAL and name not in present:
            there = ", ".join(str(int(found.removeprefix("epoch_"))) for found in present)
            raise CheckpointError(
                f"--epochs: no checkpoint after epoch {epoch} in {store.uri}; allowed: -1, 0, {there}"
            )
    return list(dict.fromkeys(wanted))


def initial_weights(store: Store) -> Weights:
    """The initial weights of a training, which its checkpoints' experiment determines.

    Raises:
        CheckpointError: if it has no whole checkpoint.
    """
    return Weights(INITIAL, "", find_weights(store).experiment)
