"""Conditional parameters: swept keys that only some choices of a swept component have, such as k and q of samplers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mbcl.config.components import COMPONENTS, defaults
from mbcl.errors import ConfigError, nearest
from mbcl.orchestration.search_space.domains import Domain, SameAs


def applies(key: str, chosen: Mapping[str, Any]) -> bool:
    """Return whether a swept key applies. A component's parameter applies only if the chosen component has it.

    Args:
        key: the dotted key.
        chosen: values of the keys that were chosen before. While the component has no name yet, the key applies.
    """
    part, _, parameter = key.partition(".")
    if part not in COMPONENTS or not parameter or parameter == "name":
        return True
    block = chosen.get(part)
    name = chosen.get(f"{part}.name", block.get("name") if isinstance(block, Mapping) else block)
    parameters = defaults(part, name) if isinstance(name, str) else None
    return parameters is None or parameter.partition(".")[0] in parameters


def check_conditional(domains: Mapping[str, Domain | SameAs]) -> None:
    """Refuse a swept parameter that no choice of its swept component has, or that a block among them sweeps, too.

    Raises:
        ConfigError: naming the key and the parameters that the choices have.
    """
    for key in domains:
        part, _, parameter = key.partition(".")
        choices = list(_choices(domains[part])) if part in domains else []
        if any(
            isinstance(choice, Mapping) and isinstance(choice.get(parameter), Domain | SameAs) for choice in choices
        ):
            raise ConfigError(f"space.{key}: a block of space.{part} has a domain for {parameter}, too; give it once")
        swept = [domains[parent] for parent in (part, f"{part}.name") if parent in domains]
        if part not in COMPONENTS or parameter in ("", "name") or not swept:
            continue
        names = dict.fromkeys(name for domain in swept for name in _names(domain))
        by_choice = [defaults(part, name) for name in names]
        if None in by_choice or any(parameter.partition(".")[0] in (parameters or ()) for parameters in by_choice):
            continue
        all_parameters = {parameter for parameters in by_choice for parameter in parameters or ()}
        raise ConfigError(
            f"space.{key}: none of {', '.join(names)} has this parameter; {nearest(parameter, all_parameters)}"
        )


def _choices(value: Any) -> Iterator[Any]:
    """Yield the values in a domain, at any depth of nested domains; a value that is none is its own choice."""
    if isinstance(value, Domain):
        for inner in value.values:
            yield from _choices(inner)
    else:
        yield value


def _names(value: Any) -> Iterator[str]:
    """Yield the component names in a domain, given as strings or as the ``name`` of a block."""
    for choice in _choices(value):
        if isinstance(choice, Mapping):
            yield from _names(choice.get("name"))
        elif isinstance(choice, str):
            yield choice
