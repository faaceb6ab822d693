"""Export of a trained encoder for other programs: safetensors, and a state dict with torchvision's own names."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mbcl import __version__
from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.data.samples import Channels
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.setup import channels_from, channels_of, load_model, load_splits, model_of
from mbcl.errors import ConfigError, pluralize
from mbcl.io.store import Store, open_store, read_text, write_text
from mbcl.models import ContrastiveModel, VisionEncoder

ENCODER_FILE = "encoder.safetensors"
MODEL_FILE = "model.safetensors"
TORCH_FILE = "encoder.pt"
RECORD_FILE = "export.json"


def export(store: Store, *, out: Store, checkpoint: str | None = None, best: bool = False) -> dict[str, Any]:
    """Export the weights of a checkpoint.

    ``model.safetensors`` holds encoder and projector under mbcl's names. ``encoder.safetensors`` and ``encoder.pt``
    hold only the encoder, under its architecture's own names. ``export.json``, written last, describes the files.

    Args:
        store: the trial's folder.
        out: the folder to write to.
        checkpoint: the name of the checkpoint; by default the last valid one.
        best: export the checkpoint with the best validation retrieval instead.

    Returns:
        The content of ``export.json``.

    Raises:
        CheckpointError: if the folder holds no such checkpoint.
        ConfigError: if ``out`` holds an export already, or both ``checkpoint`` and ``best`` are given.
    """
    if best and checkpoint is not None:
        raise ConfigError(f"--best chooses among all checkpoints, found {checkpoint}: give the folder of the training")
    if out.exists(RECORD_FILE):  # written last, so without it there is at most an incomplete export
        raise ConfigError(f"{out.uri}: holds an export already ({RECORD_FILE}); choose another --out")
    if out.exists(checkpoints.FOLDER):
        raise ConfigError(f"{out.uri}: is the folder of a training; choose another --out")
    source = checkpoints.choose(store, checkpoint, best_one=best)
    experiment = validate(Experiment, source.meta["experiment"], f"{store.uri}: its checkpoint")
    in_channels = channels_of(source.meta, source.state["model"])
    model = load_model(experiment, source.state["model"], in_channels=in_channels)
    record = {
        "format": 1,
        "mbcl": __version__,
        "checkpoint": {"name": source.name, "sha256": source.sha256, "epoch": source.epoch, "folder": store.uri},
        "build": {
            "encoder": dict(experiment.encoder),
            "projector": experiment.projector.model_dump(mode="json"),
            "in_channels": in_channels,
        },
        "out_features": model.encoder.out_features,
        "dtype": str(experiment.train.dtype).removeprefix("torch."),
        "input": _input(experiment),
        "torchvision": _torchvision(model.encoder, experiment, in_channels),
        "sources": dict(source.meta.get("facts", {}).get("sources", {})),
        "digest": experiment.digest,
        "experiment": source.meta["experiment"],
    }
    record["load"] = how_to_load(record, "DIR")
    _write(out, model, record)
    return record


def load(location: str | Path) -> ContrastiveModel:
    """Load the model of an export, a folder or its URI, in evaluation mode.

    Raises:
        ConfigError: if there is no complete export, or it is damaged.
    """
    weights = read(open_store(location))
    assert weights.in_channels is not None
    return weights.model(in_channels=weights.in_channels)


@dataclass(frozen=True)
class Weights:
    """Weights of an experiment's model.

    Args:
        name: the checkpoint's name.
        sha256: of the stored file; empty for initial weights, which the experiment determines.
        experiment: the experiment that defines the model.
        state: the model's state dict; None for the initial weights.
        in_channels: width of the input, see :class:`~mbcl.engine.setup.DataSizes`; None for the initial weights, which
            take any.
        sources: what the training data were made from, see :class:`~mbcl.engine.setup.DataSizes`.
    """

    name: str
    sha256: str
    experiment: Experiment
    state: dict[str, Tensor] | None = None
    in_channels: Channels | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def model(self, *, in_channels: Channels) -> ContrastiveModel:
        """Build the model in evaluation mode, for inputs of this width.

        Raises:
            ConfigError: if the weights are for inputs of another width.
            CheckpointError: if the weights belong to another model.
        """
        if self.state is None:
            return model_of(self.experiment, in_channels=in_channels).eval()
        if self.in_channels != in_channels:
            raise ConfigError(
                f"data: found {_describe_width(in_channels)}, but checkpoint {self.name} was trained on "
                f"{self.in_channels}"
            )
        return load_model(self.experiment, self.state, in_channels=in_channels).eval()


def read(store: Store) -> Weights:
    """Read the weights of an export and their experiment.

    Raises:
        ConfigError: if there is no complete export, or it is damaged.
    """
    try:
        record = json.loads(read_text(store, RECORD_FILE))
        content = store.read_bytes(MODEL_FILE)
        weights = safetensors.torch.load(content)
        name, in_channels = str(record["checkpoint"]["name"]), channels_from(record["build"]["in_channels"])
        experiment = validate(Experiment, record["experiment"], f"{store.uri}/{RECORD_FILE}")
    except FileNotFoundError as error:
        raise ConfigError(f"{store.uri}: holds no whole export, {error.filename or 'a file'} is missing") from error
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{store.uri}: its export is damaged: {str(error).splitlines()[0]}") from error
    sources = dict(record.get("sources", {}))
    return Weights(name, hashlib.sha256(content).hexdigest(), experiment, weights, in_channels, sources)


def how_to_load(record: dict[str, Any], folder: str) -> dict[str, list[str]]:
    """Return Python lines that load an export with mbcl and, if it has the architecture, with torchvision."""
    float64 = record["dtype"] == "float64"
    images = ["# the weights are float64: the images must be float64, too"] if float64 else []
    lines = {"mbcl": ["from mbcl.export import load", f"model = load({folder!r})", *images]}
    torchvision = record["torchvision"]
    if torchvision["loads"]:
        arguments = "".join(f", {key}={value}" for key, value in torchvision["arguments"].items())
        state = f"torch.load({f'{folder}/{TORCH_FILE}'!r}, weights_only=True)"
        dtype = ".double()" if float64 else ""
        lines["torchvision"] = [
            "import torch",
            "import torchvision",
            f"network = torchvision.models.get_model({torchvision['architecture']!r}{arguments}){dtype}",
            f"network.load_state_dict({state}, strict=False)",
            f"network.set_submodule({torchvision['classifier']!r}, torch.nn.Identity())",
            *images,
        ]
    return lines


def _describe_width(in_channels: Channels) -> str:
    """Describe data by the width of their input."""
    if isinstance(in_channels, tuple):
        return f"pairs of {in_channels[0]} and {in_channels[1]} numbers"
    return f"images of {pluralize(in_channels, 'channel')}"


def _input(experiment: Experiment) -> dict[str, Any]:
    """Describe the encoder's input. Mean and std need the data set's files and are None if these cannot be read."""
    try:
        # The constants do not depend on the samples, so two samples are enough.
        data = experiment.data.model_copy(update={"download": False, "max_samples": 2})
        samples = load_splits(data).train
    except ConfigError as error:
        size = experiment.data.image_size
        return {"image_size": size, "mean": None, "std": None, "note": f"the data could not be read: {error}"}
    return samples.describe_input()


def _torchvision(encoder: nn.Module, experiment: Experiment, in_channels: Channels) -> dict[str, Any]:
    """Return whether torchvision's own class loads ``encoder.pt``, with the arguments or the reason."""
    name = experiment.encoder.name
    if not isinstance(encoder, VisionEncoder):
        return {"loads": False, "note": f"{name} is mbcl's own architecture: torchvision has no class for it"}
    stem = experiment.encoder.get("stem", "imagenet")
    build = {
        "architecture": name,
        "classifier": encoder.classifier,
        "arguments": {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {},
    }
    if stem == "imagenet" and in_channels == 3:
        note = f"strict=False, because {encoder.classifier} is missing: the classifier was never trained"
        return {"loads": True, **build, "note": note}
    assert isinstance(in_channels, int)
    description = f"stem {stem}, {pluralize(in_channels, 'channel')}"
    note = f"torchvision's {name} has another first convolution ({description} here): load it with mbcl"
    return {"loads": False, **build, "note": note}


def _write(out: Store, model: ContrastiveModel, record: dict[str, Any]) -> None:
    encoder: nn.Module = model.encoder
    network = encoder.network if isinstance(encoder, VisionEncoder) else encoder
    metadata = {
        "architecture": record["build"]["encoder"]["name"],
        "mbcl": __version__,
        "experiment": record["digest"],
        "checkpoint": record["checkpoint"]["name"],
    }
    for name, module in ((ENCODER_FILE, network), (MODEL_FILE, model)):
        tensors = {key: tensor.detach().contiguous().clone() for key, tensor in module.state_dict().items()}
        out.write_bytes(name, safetensors.torch.save(tensors, metadata))
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    out.write_bytes(TORCH_FILE, buffer.getvalue())
    write_text(out, RECORD_FILE, json.dumps(record, indent=1, allow_nan=False))
