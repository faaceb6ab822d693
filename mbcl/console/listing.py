"""Listings of the registries: names, published names, parameters with their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from mbcl.config.components import COMPONENTS, registry_of
from mbcl.data import CORRUPTED, DATASETS, describe
from mbcl.errors import ConfigError, nearest
from mbcl.registry import Registry
from mbcl.samplers import PoolSampler
from mbcl.samplers._help import SHARED_PARAMETERS

_PROVIDED = {"batch_size", "num_samples", "in_channels", "in_features", "architecture", "params"}
"""Parameters that the experiment fills in itself; listings leave them out."""


def _signature(part: Callable[..., Any]) -> str:
    parameters = inspect.signature(part).parameters.values()
    shown = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _PROVIDED]
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in shown)


def _title(name: str, registry: Registry[Any]) -> str:
    aliases = registry.aliases(name)
    return f"{name}({_signature(registry[name])})" + f" (also {', '.join(aliases)})" * bool(aliases)


def _parts(kind: str, registry: Registry[Any]) -> Iterator[str]:
    yield f"{kind}:"
    for name in registry:
        yield f"  {_title(name, registry)}"
        summary = (inspect.getdoc(registry[name]) or "").split("\n")[0]
        yield f"      {summary}"


KINDS = {f"{part}s": part for part in COMPONENTS}
"""The plural names that ``mbcl list`` uses, with the keys of :data:`COMPONENTS`."""


def about(kind: str, name: str) -> str:
    """Return the text of ``mbcl list KIND NAME``: names, parameters with their defaults, and documentation.

    Raises:
        ConfigError: if that kind has no component of this name, or has no parameters to explain.
    """
    if kind not in KINDS:
        raise ConfigError(f"mbcl list {kind}: says all there is; names are explained of {', '.join(KINDS)}")
    registry = registry_of(KINDS[kind])
    name = registry.canonical(name)
    text = f"{_title(name, registry)}\n\n{inspect.getdoc(registry[name]) or ''}"
    pools = inspect.isclass(registry[name]) and issubclass(registry[name], PoolSampler)
    return f"{text}\n\n{SHARED_PARAMETERS}" if pools else text


def explain(name: str) -> str:
    """Return the text of ``mbcl explain NAME``: the kind of the component, then the text of :func:`about`.

    The component is a sampler, objective, optimizer or encoder; published names work, too.

    Raises:
        ConfigError: if no component has this name; the text gives the nearest one.
    """
    for kind, part in KINDS.items():
        with suppress(ConfigError):
            return f"{part} {about(kind, name)}"
    names = [candidate for part in COMPONENTS for candidate in registry_of(part)]
    *others, last = COMPONENTS
    raise ConfigError(f"no {', '.join(others)} or {last} is called {name!r}; {nearest(name, names)}")


def lines(kind: str | None = None) -> Iterator[str]:
    """Yield the lines of ``mbcl list`` for samplers, objectives, optimizers, encoders or datasets; for all if None."""
    for name, part in KINDS.items():
        if kind in (None, name):
            yield from _parts(name, registry_of(part))
    if kind in (None, "encoders"):
        yield "  and every classification architecture of torchvision, for example resnet18(stem='imagenet')"
    if kind in (None, "datasets"):
        yield "datasets:"
        for name in DATASETS:
            yield f"  {name}: {describe(name)}"
        yield "corrupted test sets, for evaluation:"
        for name in CORRUPTED:
            yield f"  {name}: {CORRUPTED[name].how_to_get}"
