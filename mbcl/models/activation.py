"""The nonlinearities of our own networks.

ReLU has a kink: where an input lies on it, the last bit decides whether a unit has a gradient, and such differences
grow with every step. Small images are full of exact ties (a flat background gives one pre-activation to many pixels),
so that one worker and two, whose sums are ordered differently, drift apart within twenty steps. SiLU is smooth.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from mbcl.errors import ConfigError, nearest

Activation = Literal["relu", "silu"]


def build_activation(name: Activation) -> nn.Module:
    """The nonlinearity of this name.

    Raises:
        ConfigError: if the name is unknown.
    """
    known = {"relu": nn.ReLU, "silu": nn.SiLU}
    if name not in known:
        raise ConfigError(f"unknown activation {name!r}; {nearest(name, known)}")
    # Not in place: torch.compile cuts graphs at collectives, and the next piece must not change the last one's output.
    return known[name](inplace=False)
