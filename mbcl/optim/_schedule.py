"""The learning rate as a function of the epoch and the batch size."""

from __future__ import annotations

import math
from typing import Literal, get_args

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number

ScaleRule = Literal["sqrt", "linear", "none"]
SCALE_RULES: tuple[str, ...] = get_args(ScaleRule)


def cosine_lr(epoch: float, base_lr: float, warmup_epochs: float, epochs: float) -> float:
    r"""Linear warm-up from 0, then half a cosine down to 0.

    .. math:: \eta(e) = \eta_0\, e / W \quad (e < W), \qquad
        \eta(e) = \tfrac12 \eta_0 \big(1 + \cos(\pi (e - W) / (E - W))\big) \quad (e \ge W)

    Args:
        epoch: e, fractional: completed steps divided by the steps of an epoch. The first step has rate 0 if W > 0.
            Beyond E the cosine rises again, as published, but training ends at E.
        base_lr: :math:`\eta_0`, after scaling by :func:`scale_lr`.
        warmup_epochs: W.
        epochs: E. If E <= W, training ends within the warm-up, and the rate stays at its peak from W on.

    Raises:
        ConfigError: if ``epoch``, ``base_lr`` or ``warmup_epochs`` is negative, or ``epochs`` is not above 0.

    Reference:
        Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, with linear warm-up.

    Example:
        >>> cosine_lr(5.0, 0.4, 10.0, 100.0), cosine_lr(55.0, 0.4, 10.0, 100.0)
        (0.2, 0.2)
    """
    check_number("epoch", epoch, least=0.0)
    check_number("base_lr", base_lr, least=0.0)
    check_number("warmup_epochs", warmup_epochs, least=0.0)
    check_number("epochs", epochs, above=0.0)
    if epoch < warmup_epochs:
        return base_lr * epoch / warmup_epochs
    if epochs <= warmup_epochs:
        return base_lr
    return 0.5 * base_lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def scale_lr(lr: float, batch_size: int, rule: ScaleRule) -> float:
    r"""Scale the rate by the batch size: ``sqrt`` :math:`\eta \sqrt B`, ``linear`` :math:`\eta B / 256`, ``none``.

    Args:
        lr: the rate before scaling, at least 0.
        batch_size: B, global.
        rule: the scaling rule.

    Raises:
        ConfigError: if a value is out of range or the rule is unknown.

    Reference:
        Goyal et al., arXiv 1706.02677, section 2.1 (linear); Krizhevsky, arXiv 1404.5997, section 5 (square root).

    Example:
        >>> scale_lr(0.5, 64, "sqrt"), scale_lr(0.5, 64, "linear")
        (4.0, 0.125)
    """
    check_number("lr", lr, least=0.0)
    check_count("batch_size", batch_size)
    if rule == "sqrt":
        return lr * math.sqrt(batch_size)
    if rule == "linear":
        return lr * batch_size / 256
    if rule == "none":
        return lr
    raise ConfigError(f"rule must be one of {', '.join(SCALE_RULES)}, found {rule!r}")
