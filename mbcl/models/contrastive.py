"""Encoder and projector as one model, with weights that are a pure function of the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mbcl.functional import raise_half
from mbcl.models.activation import Activation
from mbcl.models.projector import ProjectionHead
from mbcl.models.registry import ENCODERS, Encoder
from mbcl.seeding import derive


class ContrastiveModel(nn.Module):
    """Images to projections.

    Args:
        encoder: images to features.
        projector: features to projections.
    """

    def __init__(self, encoder: nn.Module, projector: ProjectionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float images to (B, F) features, what class evaluations read; float32 under autocast too."""
        return raise_half(self.encoder(x))

    def project(self, features: Tensor) -> Tensor:
        """(B, F) features to (B, D) projections, un-normalised; float32 under autocast too."""
        return raise_half(self.projector(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float images to (B, D) projections, un-normalised; float32 under autocast too."""
        return raise_half(self.projector(self.encoder(x)))


class ProjectorShape(Protocol):
    """Settings of :class:`ProjectionHead` as attributes, whatever object holds them."""

    @property
    def layers(self) -> int:
        """Linear layers."""

    @property
    def hidden(self) -> int:
        """Width of the layers but the last."""

    @property
    def dim(self) -> int:
        """D of the projections."""

    @property
    def activation(self) -> Activation | None:
        """Nonlinearity between the layers; the encoder's if None."""


def build(
    encoder: Mapping[str, Any],
    projector: ProjectorShape | None = None,
    *,
    in_channels: int,
    seed: int,
) -> ContrastiveModel:
    """A model whose initial weights are a pure function of its arguments, the same on every rank.

    Args:
        encoder: ``name``, registered in ``ENCODERS`` or a torchvision architecture, and the encoder's settings, for
            example ``{"name": "resnet_small", "blocks": 2}``.
        projector: shape of the head; the published one if omitted.
        in_channels: channels of the images.
        seed: the experiment's seed. No other generator is read or moved.

    Raises:
        ConfigError: if a name or a value is not allowed.
    """
    settings = {key: value for key, value in encoder.items() if key != "name"}
    factory = ENCODERS[encoder["name"]]
    head = {} if projector is None else {key: getattr(projector, key) for key in ("layers", "hidden", "dim")}
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would reseed the GPUs', which fork_rng does not restore here.
        torch.default_generator.manual_seed(derive(seed, "weights"))
        network = factory(in_channels=in_channels, **settings)
        width, own = cast(Encoder, network).out_features, cast(Encoder, network).nonlinearity
        activation = projector.activation if projector is not None and projector.activation else own
        return ContrastiveModel(network, ProjectionHead(in_features=width, activation=activation, **head))
