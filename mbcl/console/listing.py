"""Listings of the registries: names, published names, parameters with their defaults."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from mbcl.config.components import COMPONENTS, registry_of, shared_parameters
from mbcl.config.descriptions import parameter_descriptions
from mbcl.config.reference import Key
from mbcl.data import CORRUPTED, DATASETS, describe
from mbcl.errors import ConfigError
from mbcl.samplers import PoolSampler
from mbcl.samplers._help import SHARED_PARAMETERS

_PROVIDED = {"batch_size", "num_samples", "in_channels", "in_features", "architecture", "params"}
"""Parameters that the experiment fills in itself; listings leave them out."""


def _signature(part: Callable[..., Any], shared: Callable[..., Any] | None) -> str:
    sources = [part, shared] if shared else [part]
    parameters = [p for source in sources for p in inspect.signature(source).parameters.values()]
    shown = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _PROVIDED]
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in shown)


def _title(name: str, part: str) -> str:
    registry = registry_of(part)
    aliases = registry.aliases(name)
    return f"{name}({_signature(registry[name], shared_parameters(part))})" + f" (also {', '.join(aliases)})" * bool(
        aliases
    )


def _parts(kind: str, part: str) -> Iterator[str]:
    registry = registry_of(part)
    yield f"{kind}:"
    for name in registry:
        yield f"  {_title(name, part)}"
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
    text = f"{_title(name, KINDS[kind])}\n\n{inspect.getdoc(registry[name]) or ''}"
    if shared := shared_parameters(KINDS[kind]):
        described = parameter_descriptions(shared).items()
        text = "\n".join(
            [
                text.rstrip(),
                "",
                "As every " + KINDS[kind] + ", it also takes:",
                *(f"    {key}: {value}" for key, value in described),
            ]
        )
    pools = inspect.isclass(registry[name]) and issubclass(registry[name], PoolSampler)
    return f"{text}\n\n{SHARED_PARAMETERS}" if pools else text


def explain(name: str, keys: Callable[[], Sequence[Key]] = lambda: ()) -> str:
    """Return the text of ``mbcl explain NAME``: of a component, a data set, a key, or a parameter of components.

    A component is a sampler, objective, optimizer or encoder; published names work, too. A key is given by its path,
    such as ``planner.overlap``, or by the last word of it.

    Args:
        name: the name.
        keys: returns the keys of configurations.

    Raises:
        ConfigError: if nothing has this name; the text gives the nearest one.
    """
    for kind, part in KINDS.items():
        with suppress(ConfigError):
            return f"{part} {about(kind, name)}"
    if name in CORRUPTED:
        return f"corrupted test set {name}, for evaluation: {CORRUPTED[name].how_to_get}"
    if name in DATASETS:
        return f"data set {DATASETS.canonical(name)}: {describe(name)}"
    found = list(_keys_called(name, keys()))
    parameters = list(_parameters_called(name))
    if found or parameters:
        return "\n\n".join([*(key.text for key in found), *parameters])
    names = [candidate for part in COMPONENTS for candidate in registry_of(part)]
    known = [*names, *DATASETS, *CORRUPTED, *(key.path for key in keys())]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
    raise ConfigError(
        f"no sampler, objective, optimizer, encoder, data set or key is called {name!r}; {hint}"
        f"known: {', '.join(names)}"
    )


def _keys_called(name: str, keys: Sequence[Key]) -> Iterator[Key]:
    """Yield the key of this path, or else those that end in it; of a block, all its keys."""
    exact = [key for key in keys if key.path == name] or [key for key in keys if key.path.startswith(f"{name}.")]
    yield from exact or [
        key for key in keys if key.path.endswith(f".{name}") and not key.path.startswith("experiment.")
    ]


def _parameters_called(name: str) -> Iterator[str]:
    """Describe the parameter of this name, or ``sampler.NAME``, of the components that have it, once for each text."""
    part, _, parameter = name.rpartition(".")
    texts: dict[tuple[str, str], list[str]] = {}
    for kind in [part] if part in COMPONENTS else COMPONENTS if not part else []:
        registry = registry_of(kind)
        for component in registry:
            described = parameter_descriptions(registry[component])
            if parameter in described and parameter not in _PROVIDED:
                texts.setdefault((kind, described[parameter]), []).append(component)
    for (kind, text), components in texts.items():
        yield f"{kind}.{parameter}, a parameter of {', '.join(components)}\n\n{text}"


def lines(kind: str | None = None) -> Iterator[str]:
    """Yield the lines of ``mbcl list`` for samplers, objectives, optimizers, encoders or datasets; for all if None."""
    for name, part in KINDS.items():
        if kind in (None, name):
            yield from _parts(name, part)
    if kind in (None, "encoders"):
        yield "  and every classification architecture of torchvision, for example resnet18(stem='imagenet')"
    if kind in (None, "datasets"):
        yield "datasets:"
        for name in DATASETS:
            yield f"  {name}: {describe(name)}"
        yield "corrupted test sets, for evaluation:"
        for name in CORRUPTED:
            yield f"  {name}: {CORRUPTED[name].how_to_get}"
