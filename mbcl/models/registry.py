"""The registry of encoders: classes that take ``in_channels`` and keyword-only settings, and have ``out_features``."""

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
    """What every encoder is, besides an ``nn.Module``: images (B, C, H, W) to features (B, ``out_features``).

    It owns no random state: no dropout, no stochastic depth. It may be :class:`~mbcl.models.segments.Segmented`.
    """

    out_features: int
    nonlinearity: Activation
    """What the projector uses, too, unless told otherwise."""

    def __call__(self, x: Tensor) -> Tensor:
        """Features of a batch."""


EncoderFactory = Callable[..., nn.Module]
"""A class or function with keyword-only parameters, ``in_channels`` among them, that makes an :class:`Encoder`.

Its signature is the encoder's settings. Its weights come from the global generator, which
:func:`mbcl.models.build` seeds.
"""


class EncoderRegistry(Registry[EncoderFactory]):
    """The registered encoders and, behind them, every classification architecture of torchvision.

    torchvision is imported only when a name is asked for that is not registered.
    """

    def canonical(self, name: str) -> str:
        """The name itself, if there is such an encoder.

        Raises:
            ConfigError: if there is none; the text names the nearest one.
        """
        if name in self._parts or name in self._aliases:
            return super().canonical(name)
        known = architectures()
        if name not in known:
            close = difflib.get_close_matches(name, [*self, *known], n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"unknown encoder {name!r}; {hint}known: {', '.join(self)} and the {len(known)} classification "
                "architectures of torchvision, for example resnet18"
            )
        return name

    def __getitem__(self, name: str) -> EncoderFactory:
        name = self.canonical(name)
        return self._parts[name] if name in self._parts else vision_factory(name)


ENCODERS = EncoderRegistry("encoder")
