"""The encoder registry: classes with keyword-only settings, ``in_channels`` among them, and with ``out_features``."""

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

    It has no random state: no dropout, no stochastic depth. It may be :class:`~mbcl.models.segments.Segmented`.
    """

    out_features: int
    nonlinearity: Activation
    """The encoder's activation, and the default of the projector."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the features of a batch."""


EncoderFactory = Callable[..., nn.Module]
"""A class or function with keyword-only parameters, ``in_channels`` among them, that creates an :class:`Encoder`.

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
