"""Registries from names to classes, one for each kind of component. YAML, command line, tests and report share them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from mbcl.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The registered components of one kind, for example all samplers.

    Args:
        kind: the noun in messages.
        group: the group of entry points by which installed packages add components, for example ``mbcl.samplers``.
            Their modules are imported when a component is used. A name of mbcl or of a plugin wins.

    Example:
        >>> fruits: Registry[type] = Registry("fruit")
        >>> @fruits.register("apple", aliases=("pomme",))
        ... class Apple: ...
        >>> fruits["pomme"] is Apple, fruits.canonical("pomme"), list(fruits)
        (True, 'apple', ['apple'])
    """

    def __init__(self, kind: str, group: str = "") -> None:
        self.kind = kind
        self._group = group
        self._parts: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[T], T]:
        """Return a class decorator that registers a component under ``name`` and its published names.

        Raises:
            ConfigError: from the decorator, if a name is registered already.
        """

        def add(part: T) -> T:
            for key in (name, *aliases):
                if key in self._parts or key in self._aliases:
                    raise ConfigError(f"{self.kind} {key!r} is registered twice")
            self._parts[name] = part
            self._aliases.update(dict.fromkeys(aliases, name))
            return part

        return add

    def canonical(self, name: str) -> str:
        """Return the registered name of ``name``, which may be an alias.

        Raises:
            ConfigError: if the name is not registered; the message gives the nearest one.
        """
        name = self._aliases.get(name, name)
        if name not in self:
            raise ConfigError(f"unknown {self.kind} {name!r}; {nearest(name, self)}")
        return name

    def aliases(self, name: str) -> tuple[str, ...]:
        """Return the published names of the component registered under ``name``."""
        return tuple(alias for alias, target in self._aliases.items() if target == name)

    def __getitem__(self, name: str) -> T:
        name = self.canonical(name)
        if name not in self._parts:
            part = self._load(self._entry_points[name])
            self._parts.setdefault(name, part)  # its module may have registered it
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        return iter({**self._parts, **self._entry_points})

    def __len__(self) -> int:
        return len({**self._parts, **self._entry_points})

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        """The components of installed packages by name."""
        return {point.name: point for point in entry_points(group=self._group)} if self._group else {}

    def _load(self, point: EntryPoint) -> T:
        """Import the component of an installed package.

        Raises:
            ConfigError: if it cannot be imported, or if several packages have one of its name.
        """
        same = [other for other in entry_points(group=self._group) if other.name == point.name]
        if len(same) > 1:
            values = ", ".join(sorted(other.value for other in same))
            raise ConfigError(f"{self.kind} {point.name!r} is one of several packages: {values}; remove all but one")
        try:
            part: T = point.load()
            return part
        except Exception as error:  # whatever the package raises
            package = point.dist.name if point.dist else point.value
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(
                f"{self.kind} {point.name!r} of the package {package} cannot be loaded: {reason}"
            ) from error


def construct(kind: str, name: str, factory: Callable[..., T], parameters: Mapping[str, object]) -> T:
    """Call ``factory`` with ``parameters`` after checking their names against its keyword-only parameters.

    Raises:
        ConfigError: if a parameter is unknown (the message gives the nearest one) or a required one is missing.
    """
    keywords = {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in parameters:
        if key not in keywords:
            known = nearest(key, keywords) if keywords else "it takes none"
            raise ConfigError(f"{kind} {name!r}: unknown parameter {key!r}; {known}")
    for key, parameter in keywords.items():
        if parameter.default is inspect.Parameter.empty and key not in parameters:
            raise ConfigError(f"{kind} {name!r}: parameter {key!r} is required")
    return factory(**parameters)
