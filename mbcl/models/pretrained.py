"""Weights of another training as the initial ones of an encoder: the key ``encoder.weights``."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.io.store import is_uri, local_path, open_store
from mbcl.models.vision import VisionEncoder

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which files of trainings hold the state dict."""
_PREFIXES = ("", "module.", "network.", "encoder.network.", "encoder.")
"""What may precede all names: of DataParallel, of an encoder of torchvision in mbcl, of mbcl's whole model."""
_HEADS = ("projector.", "aux1.", "aux2.", "AuxLogits.")
"""Parts besides the encoder and its classifier: mbcl's projector, and auxiliary classifiers of torchvision."""


def pretrained(*, weights: str | None = None) -> None:
    """Declare the parameter that every encoder has besides its own.

    Args:
        weights: file of its initial weights, safetensors or a state dict of torch, a path or a URI; a classifier in it
            is left out. Null: random ones, by the experiment's seed.
    """


def load_pretrained(encoder: nn.Module, location: str) -> None:
    """Load initial weights into an encoder.

    Raises:
        ConfigError: if the file cannot be read, or does not hold weights of this encoder: which names are missing or
            unexpected, and which shapes differ.
    """
    vision = isinstance(encoder, VisionEncoder)
    network = encoder.network if isinstance(encoder, VisionEncoder) else encoder
    expected = network.state_dict()
    heads = (*_HEADS, f"{encoder.classifier}.") if vision else _HEADS
    found = _named_like(_read(location), expected, heads)
    missing = [name for name in expected if name not in found and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {_shape(found[name])}, expected {_shape(expected[name])}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {kind}, first {names[0]}"
        for names, kind in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if names
    ]
    if problems:
        raise ConfigError(f"weights: {location}: not the weights of this encoder: {'; '.join(problems)}")
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"weights: {location}: {name} holds values that are not finite")
    network.load_state_dict(found, strict=False)  # the counters of batches may be missing


def digest_of_weights(location: str) -> str:
    """Return 32 hexadecimal digits of the content of a file of weights.

    Raises:
        ConfigError: if it cannot be read.
    """
    return hashlib.sha256(_content(location)).hexdigest()[:32]


def _content(location: str) -> bytes:
    """Read a file.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        if is_uri(location):
            folder, _, name = location.rpartition("/")
            return open_store(folder).read_bytes(name)
        return local_path(location).read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(f"weights: {error}") from error
        raise ConfigError(
            f"weights: {location}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _read(location: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name.

    Raises:
        ConfigError: if it cannot be read, or holds anything but tensors.
    """
    raw = _content(location)
    try:
        if location.endswith(".safetensors"):
            return safetensors.torch.load(raw)
        content: Any = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files, and of pickles with other things than tensors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        form = "safetensors file" if location.endswith(".safetensors") else "state dict of torch"
        raise ConfigError(f"weights: {location}: not a {form}: {reason}") from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(
            f"weights: {location}: holds a {type(content).__name__} that is no state dict: tensors by name"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _named_like(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], heads: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return tensors without a common prefix of their names and without heads."""

    def without(prefix: str) -> dict[str, Tensor]:
        names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        rest = {name: name for name in state if not name.startswith(prefix)}
        named = {inner: state[name] for name, inner in {**rest, **names}.items()}
        return {name: tensor for name, tensor in named.items() if name in expected or not name.startswith(heads)}

    return max((without(prefix) for prefix in _PREFIXES), key=lambda named: len(named.keys() & expected.keys()))


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
