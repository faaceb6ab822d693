"""The components of an experiment by their keys. Registries are imported lazily, because they import torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
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
    """Return the registry of a kind of component, a key of :data:`COMPONENTS`."""
    module, name = COMPONENTS[part]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def shared_parameters(part: str) -> Callable[..., Any] | None:
    """Return a function with the parameters that all components of a kind have; None if they have only their own."""
    if part != "encoder":
        return None
    from mbcl.models import pretrained

    return pretrained


def canonical(part: str, name: str) -> str:
    """Return the canonical name of a published one. An unknown name is returned unchanged and refused when used."""
    try:
        return registry_of(part).canonical(name)
    except ConfigError:
        return name


def defaults(part: str, name: str) -> dict[str, Any] | None:
    """Return the parameters of a component with their defaults, ``inspect.Parameter.empty`` for required ones.

    It is None if no component has this name.
    """
    try:
        factory = registry_of(part)[name]
    except ConfigError:
        return None
    sources = [factory, shared] if (shared := shared_parameters(part)) else [factory]
    parameters = [each for source in sources for each in inspect.signature(source).parameters.values()]
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
