"""Swept parameters that only some choices of a swept part have: k and q of samplers, for example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mbcl.config.components import COMPONENTS, defaults
from mbcl.errors import ConfigError, nearest
from mbcl.orchestration.search_space.domains import Domain


def applies(key: str, chosen: Mapping[str, Any]) -> bool:
    """Whether a swept key means anything: the parameter of a swept part does only where that part has it.

    Args:
        key: dotted.
        chosen: values of the keys that were chosen before; one that is not drawn yet decides nothing.
    """
    part, _, parameter = key.partition(".")
    if part not in COMPONENTS or not parameter or parameter == "name":
        return True
    block = chosen.get(part)
    name = chosen.get(f"{part}.name", block.get("name") if isinstance(block, Mapping) else None)
    known = defaults(part, name) if isinstance(name, str) else None
    return known is None or parameter.partition(".")[0] in known


def check_conditional(domains: Mapping[str, Domain]) -> None:
    """Refuse a swept parameter that none of a swept part's choices has, or that a block of them sweeps, too.

    Raises:
        ConfigError: naming the key and the parameters that there are.
    """
    for key in domains:
        part, _, parameter = key.partition(".")
        if part in domains and any(isinstance(block.get(parameter), Domain) for block in _blocks(domains[part])):
            raise ConfigError(f"space.{key}: a block of space.{part} has a domain for {parameter}, too; give it once")
        swept = [domains[above] for above in (part, f"{part}.name") if above in domains]
        if part not in COMPONENTS or parameter in ("", "name") or not swept:
            continue
        names = dict.fromkeys(name for domain in swept for name in _names(domain))
        known = [defaults(part, name) for name in names]
        if None in known or any(parameter.partition(".")[0] in (found or ()) for found in known):
            continue
        everything = {parameter for found in known for parameter in found or ()}
        raise ConfigError(
            f"space.{key}: none of {', '.join(names)} has this parameter; {nearest(parameter, everything)}"
        )


def _blocks(value: Any) -> Iterator[Mapping[str, Any]]:
    """The blocks in a domain."""
    if isinstance(value, Domain):
        for inner in value.values:
            yield from _blocks(inner)
    elif isinstance(value, Mapping):
        yield value


def _names(value: Any) -> Iterator[str]:
    """The names that a part may take in a domain."""
    if isinstance(value, Domain):
        for inner in value.values:
            yield from _names(inner)
    elif isinstance(value, Mapping):
        yield from _names(value.get("name"))
    elif isinstance(value, str):
        yield value
