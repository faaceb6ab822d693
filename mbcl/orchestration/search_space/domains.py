"""What a swept key may take: lists, ranges, and blocks with domains of their own inside.

A space is taken apart in two steps. :func:`points` multiplies all grids out; what is left of a point holds only domains
that are drawn. :func:`fill` draws those, from a seed (:func:`drawn_from`), by a search, or all extremes in turn
(:func:`extremes`).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mbcl.errors import ConfigError, nearest
from mbcl.seeding import numpy_generator

LISTS = ("grid", "choice")
RANGES = ("uniform", "loguniform", "randint")
KINDS = (*LISTS, *RANGES)
MOST_INTEGER, MOST_FLOAT = 2**53, 1e100
"""The largest ends of a range: beyond them whole numbers are not exact in a search, and widths overflow."""


@dataclass(frozen=True)
class Domain:
    """The values that one key takes.

    Args:
        kind: ``grid`` (every value), ``choice`` (one value a draw), or a range to draw from: ``uniform``,
            ``loguniform``, ``randint`` (whole numbers, the upper end excluded, as in Ray and NumPy).
        values: what is allowed, in the order of the file; of a range its two ends. A block among them may hold
            domains.
    """

    kind: str
    values: tuple[Any, ...]


Draw = Callable[[str, Domain], Any]
"""Draws from a domain, given its path, which no other domain of a setting has: the index of a choice, or a number."""
Applies = Callable[[str, Mapping[str, Any]], bool]
"""Whether a swept key means anything, given the values of the keys that it depends on."""


def parse(block: Any) -> Domain:
    """A domain as the space file has it, such as ``{grid: [1, 2]}``.

    Raises:
        ConfigError: if it is none; the text says what is allowed.
    """
    if isinstance(block, Domain):
        return block
    if not isinstance(block, Mapping) or len(block) != 1:
        raise ConfigError(
            f"expected a block with one domain ({', '.join(KINDS)}) such as {{grid: [1, 2]}}, found {block!r}"
        )
    kind, values = next(iter(block.items()))
    if kind not in KINDS:
        raise ConfigError(f"unknown domain {kind!r}; {nearest(str(kind), KINDS)}")
    if kind in RANGES:
        _check_range(kind, values)
        return Domain(kind, tuple(values))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{kind}: expected a list of at least one value, found {values!r}")
    found = Domain(kind, tuple(_parse_inside(value) for value in values))
    if kind == "choice" and any(has_grid(value) for value in found.values):
        raise ConfigError("choice: found a grid inside it, which cannot be tried whole in one draw; allowed: choice")
    return found


def _parse_inside(value: Any) -> Any:
    """A value of a list, with the domains that a block may hold."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and next(iter(value)) in KINDS:
        return parse(value)
    return {key: _parse_inside(inner) for key, inner in value.items()}


def _check_range(kind: str, values: Any) -> None:
    allowed: tuple[type, ...] = (int,) if kind == "randint" else (int, float)
    fits = (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(value, allowed) and not isinstance(value, bool) for value in values)
        and all(math.isfinite(value) if isinstance(value, float) else True for value in values)
    )
    if not fits:
        raise ConfigError(
            f"{kind}: expected [a, b] with {'whole ' if kind == 'randint' else ''}numbers, found {values!r}"
        )
    low, high = values
    most = MOST_INTEGER if kind == "randint" else MOST_FLOAT
    if max(abs(low), abs(high)) > most:
        raise ConfigError(f"{kind}: expected [a, b] within {-most:g} and {most:g}, found an end beyond them")
    if low >= high:
        raise ConfigError(f"{kind}: expected [a, b] with a below b, found {values!r}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"loguniform: expected [a, b] with a above 0, found {values!r}")


def plain(value: Any) -> Any:
    """A domain, or a value with domains inside, as the space file has it."""
    if isinstance(value, Domain):
        return {value.kind: [plain(inner) for inner in value.values]}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def walk(value: Any) -> Iterator[Domain]:
    """A domain and all domains inside it."""
    if isinstance(value, Domain):
        yield value
        for inner in value.values:
            yield from walk(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from walk(inner)


def has_grid(value: Any) -> bool:
    """Whether a grid is in there."""
    return any(domain.kind == "grid" for domain in walk(value))


def is_drawn(value: Any) -> bool:
    """Whether anything in there is drawn."""
    return any(domain.kind != "grid" for domain in walk(value))


def _grids(value: Any) -> Iterator[Any]:
    """A value with each of its grids' values in turn."""
    if isinstance(value, Domain) and value.kind == "grid":
        for inner in value.values:
            yield from _grids(inner)
    elif isinstance(value, Mapping):
        for combination in itertools.product(*(list(_grids(inner)) for inner in value.values())):
            yield dict(zip(value, combination, strict=True))
    else:
        yield value


def num_combinations(value: Any) -> int:
    """How many combinations the grids' values have in a value with domains inside, if every key applies."""
    if isinstance(value, Domain) and value.kind == "grid":
        return sum(num_combinations(inner) for inner in value.values)
    if isinstance(value, Mapping):
        return math.prod(num_combinations(inner) for inner in value.values())
    return 1


def _in_order(domains: Mapping[str, Any]) -> list[str]:
    """The keys as in the file, but each after those that it depends on: a block, or the name in that block."""
    order: dict[str, None] = {}
    for key in domains:
        parts = key.split(".")
        for depth in range(1, len(parts)):
            above = ".".join(parts[:depth])
            order.update((found, None) for found in (above, f"{above}.name") if found in domains)
        order[key] = None
    return list(order)


def points(domains: Mapping[str, Domain], applies: Applies) -> Iterator[dict[str, Any]]:
    """All combinations of the grids' values, the last key fastest; what is drawn stays a domain.

    Args:
        domains: by swept key.
        applies: keys for which it is false are left out of a combination.
    """
    order = _in_order(domains)

    def extend(chosen: dict[str, Any], position: int) -> Iterator[dict[str, Any]]:
        if position == len(order):
            yield {key: chosen[key] for key in domains if key in chosen}
            return
        key = order[position]
        if not applies(key, chosen):
            yield from extend(chosen, position + 1)
            return
        for value in _grids(domains[key]):
            yield from extend({**chosen, key: value}, position + 1)

    yield from extend({}, 0)


def fill(point: Mapping[str, Any], applies: Applies, draw: Draw) -> dict[str, Any]:
    """A setting's values by swept key: a point of the grids with everything drawn that applies."""
    chosen: dict[str, Any] = {}
    for key in _in_order(point):
        if applies(key, chosen):
            chosen[key] = _fill(point[key], key, draw)
    return {key: chosen[key] for key in point if key in chosen}


def _fill(value: Any, path: str, draw: Draw) -> Any:
    if isinstance(value, Domain):
        drawn = draw(path, value)
        return _fill(value.values[drawn], f"{path}[{drawn}]", draw) if value.kind == "choice" else drawn
    if isinstance(value, Mapping):
        return {key: _fill(inner, f"{path}.{key}", draw) for key, inner in value.items()}
    return copy.deepcopy(value)


def drawn_from(seed: int, number: int) -> Draw:
    """Independent draws: a pure function of seed, path and number, so that equal domains of two points pair."""

    def draw(path: str, domain: Domain) -> Any:
        rng = numpy_generator(seed, f"search:{path}", number)
        if domain.kind == "choice":
            return int(rng.integers(len(domain.values)))
        low, high = domain.values
        if domain.kind == "randint":
            return int(rng.integers(low, high))
        if domain.kind == "uniform":
            return float(rng.uniform(low, high))
        # The exponential may round to the other side of an end.
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))

    return draw


class _Script:
    """Draws what a list of positions says, the first option beyond its end, and notes what there was."""

    def __init__(self, script: list[int]) -> None:
        self._script = script
        self.taken: list[tuple[int, int]] = []

    def __call__(self, path: str, domain: Domain) -> Any:
        options = list(range(len(domain.values))) if domain.kind == "choice" else _ends(domain)
        picked = self._script[len(self.taken)] if len(self.taken) < len(self._script) else 0
        self.taken.append((picked, len(options)))
        return options[picked]


def extremes(point: Mapping[str, Any], applies: Applies) -> Iterator[dict[str, Any]]:
    """A point with every combination of its choices' values and its ranges' ends."""
    script = _Script([])
    while True:
        yield fill(point, applies, script)
        taken = script.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        *before, last = (picked for picked, _ in taken)
        script = _Script([*before, last + 1])


def probes(point: Mapping[str, Any], applies: Applies, most: int) -> list[dict[str, Any]]:
    """All extremes of a point, or ``most`` of them at random if there are more."""
    found = list(itertools.islice(extremes(point, applies), most + 1))
    return found if len(found) <= most else [fill(point, applies, _end_from(number)) for number in range(most)]


def _end_from(number: int) -> Draw:
    def draw(path: str, domain: Domain) -> Any:
        rng = numpy_generator(0, f"probe:{path}", number)
        if domain.kind == "choice":
            return int(rng.integers(len(domain.values)))
        ends = _ends(domain)
        return ends[int(rng.integers(len(ends)))]

    return draw


def _ends(domain: Domain) -> list[Any]:
    low, high = domain.values
    if domain.kind == "randint":
        return [low, high - 1] if high - 1 > low else [low]
    return [float(low), float(high)]


def describe(value: Any) -> str:
    """A domain, or a value with domains inside, for people: ``0.1 to 1``, ``one of 2, 4``."""
    if isinstance(value, Domain):
        if value.kind in LISTS:
            return (
                f"{'each' if value.kind == 'grid' else 'one'} of {', '.join(describe(inner) for inner in value.values)}"
            )
        low, high = value.values
        if value.kind == "randint":
            return f"a whole number from {low} to {high - 1}"
        return f"{low:g} to {high:g}{', evenly in its logarithm' if value.kind == 'loguniform' else ''}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(inner)}" for key, inner in value.items()) + "}"
    return short(value)


def short(value: Any) -> str:
    """A value of a space as one would type it: ``{name: osgd, k: 20}``."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {short(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(short(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
