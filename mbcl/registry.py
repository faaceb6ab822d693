"""Registries from names to classes, one for each kind of component. YAML, command line, tests and report share them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from mbcl.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The registered components of one kind, for example all samplers.

    Example:
        >>> fruits: Registry[type] = Registry("fruit")
        >>> @fruits.register("apple", aliases=("pomme",))
        ... class Apple: ...
        >>> fruits["pomme"] is Apple, fruits.canonical("pomme"), list(fruits)
        (True, 'apple', ['apple'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[T], T]:
        """Return a class decorator that registers a component under ``name`` and its published names."""

        def add(part: T) -> T:
            for key in (name, *aliases):
                assert key not in self._parts, f"{self.kind} {key!r} is registered twice"
                assert key not in self._aliases, f"{self.kind} {key!r} is registered twice"
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
        if name not in self._parts:
            raise ConfigError(f"unknown {self.kind} {name!r}; {nearest(name, self._parts)}")
        return name

    def aliases(self, name: str) -> tuple[str, ...]:
        """Return the published names of the component registered under ``name``."""
        return tuple(alias for alias, target in self._aliases.items() if target == name)

    def __getitem__(self, name: str) -> T:
        return self._parts[self.canonical(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


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
