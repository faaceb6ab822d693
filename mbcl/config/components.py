"""The parts of an experiment that registries build, by their keys. A registry loads late: it brings torch along."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from mbcl.errors import ConfigError
from mbcl.registry import Registry

COMPONENTS = {
    "sampler": ("mbcl.samplers", "SAMPLERS"),
    "objective": ("mbcl.objectives", "OBJECTIVES"),
    "optimizer": ("mbcl.optim", "OPTIMIZERS"),
    "encoder": ("mbcl.models", "ENCODERS"),
}


def registry_of(part: str) -> Registry[Any]:
    """What builds a part.

    Args:
        part: a key of :data:`COMPONENTS`.
    """
    module, name = COMPONENTS[part]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def canonical(part: str, name: str) -> str:
    """Our name behind a published one; a name that nobody knows as it is, to be refused where it is used."""
    try:
        return registry_of(part).canonical(name)
    except ConfigError:
        return name


def defaults(part: str, name: str) -> dict[str, Any] | None:
    """The parameters of a part of that name with their defaults, ``inspect.Parameter.empty`` for those without one.

    Returns:
        None if no part is called so.
    """
    try:
        factory = registry_of(part)[name]
    except ConfigError:
        return None
    found = inspect.signature(factory).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.kind is parameter.KEYWORD_ONLY}
