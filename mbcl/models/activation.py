"""The activation functions of this package's own networks.

ReLU has a kink: at an input of 0 the last bit decides whether a unit has a gradient, and such differences grow with
every step. Small images have many exact ties (a flat background gives many pixels the same pre-activation). So one
worker and two, whose sums are ordered differently, diverge within twenty steps. SiLU is smooth.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from mbcl.errors import ConfigError, nearest

Activation = Literal["relu", "silu"]


def build_activation(name: Activation) -> nn.Module:
    """Create the activation of this name.

    Raises:
        ConfigError: if the name is unknown.
    """
    activations = {"relu": nn.ReLU, "silu": nn.SiLU}
    if name not in activations:
        raise ConfigError(f"unknown activation {name!r}; {nearest(name, activations)}")
    # Not in place: torch.compile breaks graphs at collectives, and a graph must not modify its predecessor's output.
    return activations[name](inplace=False)
