"""Shared checks of arguments. They read shapes and plain numbers only, never a tensor's values.

A failed check of a number or a choice raises :class:`~mbcl.errors.ConfigError`, whose text holds the value.
"""

from __future__ import annotations

import math

from torch import Tensor

from mbcl.errors import ConfigError


def check_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` if it is a finite number in the range: open at ``above`` and ``below``, closed otherwise.

    Example:
        >>> check_number("momentum", 0.9, least=0.0, most=1.0)
        0.9
    """
    bounds = [f"> {above:g}"] * (above > -math.inf) + [f">= {least:g}"] * (least > -math.inf)
    bounds += [f"<= {most:g}"] * (most < math.inf) + [f"< {below:g}"] * (below < math.inf)
    allowed = " and ".join(bounds) or "finite"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number {allowed}, found {value!r}")
    if not (above < value < below and least <= value <= most):
        raise ConfigError(f"{name} must be {allowed}, found {value!r}")
    return value


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number not below ``least``.

    Example:
        >>> check_count("k", 40)
        40
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number >= {least}, found {value!r}")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of the ``choices``; the error's text holds these, too.

    Example:
        >>> check_choice("estimator", "hard", ("hard", "easy"))
    """
    if value not in choices:
        raise ConfigError(f"{name} must be {' or '.join(map(repr, choices))}, found {value!r}")


SMALLEST_TEMPERATURE = 1e-6


def check_temperature(value: object) -> float:
    """Return ``value`` if it is a temperature: finite, above 0, and large enough that a cosine over it cannot overflow.

    Example:
        >>> check_temperature(0.1)
        0.1
    """
    return check_number("temperature", check_number("temperature", value, above=0.0), least=SMALLEST_TEMPERATURE)


def check_views(
    name: str, z1: Tensor, z2: Tensor, candidates1: Tensor | None, candidates2: Tensor | None, offset: int
) -> None:
    """Check the shapes of two views (..., b, D) and of the candidates (..., B, D) that contain them.

    Raises:
        ValueError: if they do not fit together, or if there are fewer than two samples: a single sample has no
            negatives, so its loss is not defined.
    """
    if z1.ndim < 2 or z1.shape != z2.shape:
        raise ValueError(f"{name}: views must be (..., B, D) of one shape, found {tuple(z1.shape)}, {tuple(z2.shape)}")
    if not (z1.is_floating_point() and z2.is_floating_point()):
        raise ValueError(f"{name}: views must be floating point, found {z1.dtype} and {z2.dtype}")
    if (candidates1 is None) != (candidates2 is None):
        raise ValueError(f"{name}: candidates of both views are needed, or of none")
    num_local = num_candidates = z1.shape[-2]
    if candidates1 is not None and candidates2 is not None:
        if candidates1.shape != candidates2.shape or candidates1.shape[-1] != z1.shape[-1]:
            raise ValueError(
                f"{name}: candidates must be (..., B, {z1.shape[-1]}) of one shape, "
                f"found {tuple(candidates1.shape)}, {tuple(candidates2.shape)}"
            )
        num_candidates = candidates1.shape[-2]
    if num_candidates < 2:
        raise ValueError(f"{name}: at least 2 samples are needed, one alone has no negatives; found {num_candidates}")
    if not 0 <= offset <= num_candidates - num_local:
        raise ValueError(f"{name}: {num_local} anchors at offset {offset} are not among {num_candidates} candidates")
