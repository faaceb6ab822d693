"""The contrastive model: encoder and projector, with initial weights that are a pure function of the seed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.functional import raise_half
from mbcl.models.activation import Activation
from mbcl.models.pretrained import load_pretrained
from mbcl.models.projector import ProjectionHead
from mbcl.models.registry import ENCODERS, Encoder, EncoderFactory
from mbcl.seeding import derive


class ContrastiveModel(nn.Module):
    """An encoder, which maps inputs to features, and a projector, which maps features to projections.

    Inputs are (B, C, H, W) images, or for an encoder of pairs (2B, W) rows.
    """

    def __init__(self, encoder: nn.Module, projector: ProjectionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def features(self, x: Tensor) -> Tensor:
        """Map float inputs to (B, F) features, for class evaluations; float32 even under autocast."""
        return raise_half(self.encoder(x))

    def project(self, features: Tensor) -> Tensor:
        """Map (B, F) features to (B, D) projections, un-normalised; float32 even under autocast."""
        return raise_half(self.projector(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map float inputs to (B, D) projections, un-normalised; float32 even under autocast."""
        return raise_half(self.projector(self.encoder(x)))


class ProjectorShape(Protocol):
    """The settings of :class:`ProjectionHead` as attributes of any object."""

    layers: int
    hidden: int
    dim: int
    activation: Activation | None
    """None for the encoder's."""


def build(
    encoder: Mapping[str, Any],
    projector: ProjectorShape | None = None,
    *,
    in_channels: int | tuple[int, int],
    seed: int,
) -> ContrastiveModel:
    """Build a model whose initial weights are a pure function of the arguments, the same on every rank.

    Args:
        encoder: ``name`` (registered in ``ENCODERS`` or a torchvision architecture) and the encoder's settings, for
            example ``{"name": "resnet_small", "blocks": 2}``; ``weights`` is a file, see
            :func:`~mbcl.models.pretrained.pretrained`.
        projector: shape of the projection head; the published shape if omitted.
        in_channels: channels of the images, or the widths of both sides of pairs.
        seed: the experiment's seed. No other random generator is read or advanced.

    Raises:
        ConfigError: if a name or a value is not allowed, or the encoder is for the other kind of data.
    """
    settings = {key: value for key, value in encoder.items() if key not in ("name", "weights")}
    factory = ENCODERS[encoder["name"]]
    provided = _input_of(encoder["name"], factory, in_channels)
    head = {} if projector is None else {key: getattr(projector, key) for key in ("layers", "hidden", "dim")}
    with torch.random.fork_rng(devices=[]):
        # Seed the CPU generator only: torch.manual_seed also reseeds the GPUs, which fork_rng does not restore here.
        torch.default_generator.manual_seed(derive(seed, "weights"))
        network = factory(**provided, **settings)
        if encoder.get("weights"):
            load_pretrained(network, encoder["weights"])
        width, encoder_activation = cast(Encoder, network).out_features, cast(Encoder, network).nonlinearity
        activation = projector.activation if projector is not None and projector.activation else encoder_activation
        return ContrastiveModel(network, ProjectionHead(in_features=width, activation=activation, **head))


def _input_of(name: str, factory: EncoderFactory, in_channels: int | tuple[int, int]) -> dict[str, Any]:
    """Return the width of an encoder's input by its keyword: ``in_features`` of encoders of pairs, or ``in_channels``.

    Raises:
        ConfigError: if the encoder has the other one.
    """
    takes_pairs = "in_features" in inspect.signature(factory).parameters
    if takes_pairs == isinstance(in_channels, tuple):
        return {"in_features" if takes_pairs else "in_channels": in_channels}
    if takes_pairs:
        raise ConfigError(f"{name} encodes pairs, but these data are images")
    raise ConfigError(f"{name} encodes images, but these data are pairs; allowed for pairs: pair_mlp")
