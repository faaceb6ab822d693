"""Descriptions of the parameters of components, from their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

_SECTION = re.compile(r"^[A-Z][A-Za-z]*:$")
_AS_OTHERS = "as for all samplers with embeddings"
_ARGUMENT = re.compile(r"^    ([a-z]\w*(?:, [a-z]\w*)*): (.*)$")


def parameter_descriptions(part: Callable[..., Any]) -> dict[str, str]:
    """Return the descriptions of a component's parameters, of which base classes have some, in one line each.

    Example:
        >>> def draw(*, k: int) -> None:
        ...     '''Draw.
        ...
        ...     Args:
        ...         k: how many
        ...             samples.
        ...     '''
        >>> parameter_descriptions(draw)
        {'k': 'how many samples.'}
    """
    target = part.func if isinstance(part, partial) else part
    sources = reversed(target.__mro__[:-1]) if inspect.isclass(target) else [target]
    described: dict[str, str] = {}
    for source in sources:
        for name, text in _arguments(inspect.getdoc(source) or "").items():
            rest = text.removeprefix(_AS_OTHERS)
            described[name] = text if rest == text or name not in described else described[name].rstrip(".") + rest
    return described


def _arguments(text: str) -> dict[str, str]:
    """Return the entries of the section ``Args`` of a docstring."""
    described: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        if _SECTION.match(line):
            inside = line == "Args:"
        elif inside and (match := _ARGUMENT.match(line)):
            names = match[1].split(", ")
            described |= dict.fromkeys(names, match[2])
        elif inside and line.strip():
            described |= {name: f"{described[name]} {line.strip()}" for name in names}
    return described
