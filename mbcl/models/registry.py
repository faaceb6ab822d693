"""The encoder registry: classes with keyword-only settings, the input's width among them, and with ``out_features``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.models.activation import Activation
from mbcl.models.vision import architectures, vision_factory
from mbcl.registry import Registry


class Encoder(Protocol):
    """The interface of an encoder, an ``nn.Module`` from images (B, C, H, W) to features (B, ``out_features``).

    An encoder of pairs maps (2B, W) rows, side 1 of all pairs, then side 2, to as many rows of features.

    It has no random state: no dropout, no stochastic depth. It may be :class:`~mbcl.models.segments.Segmented`.
    """

    out_features: int
    nonlinearity: Activation
    """The encoder's activation, and the default of the projector."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the features of a batch."""


EncoderFactory = Callable[..., nn.Module]
"""A class or function with keyword-only parameters that creates an :class:`Encoder`.

One parameter is ``in_channels``, the channels of images, or ``in_features``, the widths of both sides of pairs.

Its signature defines the encoder's settings. Weights are drawn from torch's global generator, which
:func:`mbcl.models.build` seeds.
"""


class EncoderRegistry(Registry[EncoderFactory]):
    """A registry of encoders that falls back to torchvision's classification architectures.

    It imports torchvision lazily, only to look up a name that is not registered.
    """

    def canonical(self, name: str) -> str:
        """Return the canonical name of an encoder.

        Raises:
            ConfigError: if there is no such encoder; the message suggests the nearest name.
        """
        if name in self or name in self._aliases:
            return super().canonical(name)
        vision_names = architectures()
        if name not in vision_names:
            matches = difflib.get_close_matches(name, [*self, *vision_names], n=1)
            hint = f"did you mean {matches[0]!r}? " if matches else ""
            raise ConfigError(
                f"unknown encoder {name!r}; {hint}known: {', '.join(self)} and the {len(vision_names)} classification "
                "architectures of torchvision, for example resnet18"
            )
        return name

    def __getitem__(self, name: str) -> EncoderFactory:
        name = self.canonical(name)
        return super().__getitem__(name) if name in self else vision_factory(name)


ENCODERS = EncoderRegistry("encoder", "mbcl.encoders")
