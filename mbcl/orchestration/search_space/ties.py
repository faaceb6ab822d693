"""Ties: keys of a space that have the value of another key, ``{same_as: objective.temperature}``.

A tie is resolved in every setting by itself, after its domains are expanded or drawn. The other key may be swept,
drawn, tied, or constant; the default of a parameter that is not given counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any

from mbcl.config.base import set_path
from mbcl.config.components import COMPONENTS, defaults
from mbcl.errors import ConfigError, nearest
from mbcl.orchestration.search_space.domains import Domain, SameAs


def ties_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every tie at any depth as the dotted key that has it and the key that it names."""
    if isinstance(value, SameAs):
        yield path, value.key
    elif isinstance(value, Domain):
        for inner in value.values:
            yield from ties_in(inner, path)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ties_in(inner, f"{path}.{key}" if path else str(key))


def check_tie(key: str, other: str, check_key: Callable[[str, str], None]) -> None:
    """Refuse a tie that no setting could resolve. Parameters of components are checked setting by setting.

    Args:
        key: the key that is tied.
        other: the key that it names.
        check_key: refuses a key that an experiment does not have; takes the key, and how the error text begins.

    Raises:
        ConfigError: naming both keys.
    """
    where = f"space.{key}.same_as"
    if other == key or key.startswith(f"{other}.") or other.startswith(f"{key}."):
        raise ConfigError(f"{where}: found {other!r}, which is tied to itself; allowed: another key")
    if other == "seed":
        raise ConfigError(f"{where}: found 'seed', which is another in every replicate; allowed: another key")
    if key in COMPONENTS or (key.endswith(".name") and key.removesuffix(".name") in COMPONENTS):
        raise ConfigError(f"{where}: a component cannot be tied, only its parameters such as sampler.temperature")
    check_key(other, where)


def resolve_ties(content: dict[str, Any]) -> None:
    """Replace the ties in an experiment, in place, by the values that they name.

    Raises:
        ConfigError: if ties form a circle, or name a key that the setting does not have.
    """
    ties = dict(ties_in(content))
    while ties:
        key = next(iter(ties))
        chain = [key]
        while (following := _tie_within(ties, ties[chain[-1]])) is not None:
            if following in chain:
                circle = " -> ".join([*chain[chain.index(following) :], following])
                raise ConfigError(f"{following}: its same_as is a circle: {circle}; allowed: a key that has a value")
            chain.append(following)
        value = _value_at(content, ties[chain[-1]], f"{chain[-1]}.same_as")
        set_path(content, chain[-1], copy.deepcopy(value))
        del ties[chain[-1]]


def _tie_within(ties: Mapping[str, str], key: str) -> str | None:
    """Return a tie that must be resolved before a key has its value: one at the key, around it, or inside it."""
    return next((tie for tie in ties if tie == key or tie.startswith(f"{key}.") or key.startswith(f"{tie}.")), None)


def _value_at(content: Mapping[str, Any], key: str, where: str) -> Any:
    """Return the value of a dotted key, or the default of a component's parameter that the content leaves out."""
    value: Any = content
    for depth, word in enumerate(key.split(".")):
        part = key.split(".")[0]
        known = dict(value) if isinstance(value, Mapping) else {}
        if depth == 1 and part in COMPONENTS:
            name = known.get("name", value)
            parameters = (defaults(part, name) if isinstance(name, str) else None) or {}
            known = {each: default for each, default in parameters.items() if default is not Parameter.empty} | known
        if word not in known:
            raise ConfigError(f"{where}: found {key!r}, which this setting does not have; {nearest(word, known)}")
        value = known[word]
    return value
