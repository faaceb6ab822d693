"""Domains: the values that a swept key takes. They are lists, ranges, and blocks with nested domains.

A space is expanded in two steps. :func:`points` forms the Cartesian product of all grids; the domains that remain in a
point are drawn. :func:`fill` draws them: from a seed (:func:`drawn_from`), by a search, or all extremes in turn
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
TIE = "same_as"
MAX_INTEGER, MAX_FLOAT = 2**53, 1e100
"""Largest absolute ends of a range. Beyond 2**53 a float64 of the search is not exact; beyond 1e100 widths overflow."""


@dataclass(frozen=True)
class Domain:
    """The values that one key takes.

    Args:
        kind: ``grid`` (every value), ``choice`` (one value a draw), or a range to draw from: ``uniform``,
            ``loguniform``, ``randint`` (whole numbers, the upper end excluded, as in Ray and NumPy).
        values: the values of a list in the order of the file, or the two ends of a range. A block among the values may
            hold domains.
    """

    kind: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class SameAs:
    """The value of another key of the same setting, once all domains are expanded; see :mod:`.ties`.

    Args:
        key: the dotted key of the experiment.
    """

    key: str


Draw = Callable[[str, Domain], Any]
"""Draws from a domain: an index for ``choice``, a number for a range. The path is unique among a setting's domains."""
Applies = Callable[[str, Mapping[str, Any]], bool]
"""Whether a swept key applies, given the values of the keys that it depends on."""


def parse(block: Any) -> Domain | SameAs:
    """Parse a domain from the space file, such as ``{grid: [1, 2]}``, or a tie, such as ``{same_as: train.epochs}``.

    Raises:
        ConfigError: if the block is neither; the text says what is allowed.
    """
    if isinstance(block, Domain | SameAs):
        return block
    if not isinstance(block, Mapping) or len(block) != 1:
        raise ConfigError(
            f"expected a block with one domain ({', '.join((*KINDS, TIE))}) such as {{grid: [1, 2]}}, found {block!r}"
        )
    kind, values = next(iter(block.items()))
    if kind == TIE:
        if not isinstance(values, str):
            raise ConfigError(f"{TIE}: expected a dotted key such as objective.temperature, found {values!r}")
        return SameAs(values)
    if kind not in KINDS:
        raise ConfigError(f"unknown domain {kind!r}; {nearest(str(kind), (*KINDS, TIE))}")
    if kind in RANGES:
        _check_range(kind, values)
        return Domain(kind, tuple(values))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{kind}: expected a list of at least one value, found {values!r}")
    domain = Domain(kind, tuple(_parse_nested(value) for value in values))
    if kind == "choice" and any(inner.kind == "grid" for inner in walk(domain)):
        raise ConfigError("choice: found a grid inside it, which cannot be tried whole in one draw; allowed: choice")
    return domain


def _parse_nested(value: Any) -> Any:
    """Parse the domains inside one value of a list."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and next(iter(value)) in (*KINDS, TIE):
        return parse(value)
    return {key: _parse_nested(inner) for key, inner in value.items()}


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
    limit = MAX_INTEGER if kind == "randint" else MAX_FLOAT
    if max(abs(low), abs(high)) > limit:
        raise ConfigError(f"{kind}: expected [a, b] within {-limit:g} and {limit:g}, found an end beyond them")
    if low >= high:
        raise ConfigError(f"{kind}: expected [a, b] with a below b, found {values!r}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"loguniform: expected [a, b] with a above 0, found {values!r}")


def plain(value: Any) -> Any:
    """Return a domain, or a value with nested domains, in the space file's form. The inverse of :func:`parse`."""
    if isinstance(value, Domain):
        return {value.kind: [plain(inner) for inner in value.values]}
    if isinstance(value, SameAs):
        return {TIE: value.key}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def walk(value: Any) -> Iterator[Domain]:
    """Yield all domains of a value, outer ones first."""
    if isinstance(value, Domain):
        yield value
        for inner in value.values:
            yield from walk(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from walk(inner)


def is_drawn(value: Any) -> bool:
    """Return whether a value holds a domain that is drawn, at any depth."""
    return any(domain.kind != "grid" for domain in walk(value))


def _grids(value: Any) -> Iterator[Any]:
    """Yield the value once for every combination of its grids' values; drawn domains stay."""
    if isinstance(value, Domain) and value.kind == "grid":
        for inner in value.values:
            yield from _grids(inner)
    elif isinstance(value, Mapping):
        for combination in itertools.product(*(list(_grids(inner)) for inner in value.values())):
            yield dict(zip(value, combination, strict=True))
    else:
        yield value


def num_combinations(value: Any) -> int:
    """Return how many combinations the grids of a value have if every key applies."""
    if isinstance(value, Domain) and value.kind == "grid":
        return sum(num_combinations(inner) for inner in value.values)
    if isinstance(value, Mapping):
        return math.prod(num_combinations(inner) for inner in value.values())
    return 1


def _topological_order(domains: Mapping[str, Any]) -> list[str]:
    """Return the keys in the file's order, but each after the keys that it depends on: a block, or its ``name``."""
    order: dict[str, None] = {}
    for key in domains:
        parts = key.split(".")
        for depth in range(1, len(parts)):
            block = ".".join(parts[:depth])
            order.update((parent, None) for parent in (block, f"{block}.name") if parent in domains)
        order[key] = None
    return list(order)


def points(domains: Mapping[str, Domain | SameAs], applies: Applies) -> Iterator[dict[str, Any]]:
    """Yield all combinations of the grids' values by swept key, the last key fastest, without keys that do not apply.

    Drawn domains stay domains.
    """
    order = _topological_order(domains)

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
    """Return a setting's values by swept key: a point of the grids whose domains are drawn, if their keys apply."""
    chosen: dict[str, Any] = {}
    for key in _topological_order(point):
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
    """Draw independently, as a pure function of seed, path and number.

    Equal domains of two points of the grids get the same values (common random numbers), so that their settings pair.
    """

    def draw(path: str, domain: Domain) -> Any:
        rng = numpy_generator(seed, f"search:{path}", number)
        if domain.kind == "choice":
            return int(rng.integers(len(domain.values)))
        low, high = domain.values
        if domain.kind == "randint":
            return int(rng.integers(low, high))
        if domain.kind == "uniform":
            return float(rng.uniform(low, high))
        # The exponential may round to a value outside of the range.
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))

    return draw


def extremes(point: Mapping[str, Any], applies: Applies) -> Iterator[dict[str, Any]]:
    """Yield a point with every combination of its choices' values and its ranges' ends.

    Which domains apply depends on earlier draws, so this is no plain product: it backtracks over the recorded draws.
    """
    script: list[int] = []
    record: list[tuple[int, int]] = []

    def draw(path: str, domain: Domain) -> Any:
        """Draw the option at the script's position, or the first one, and record its position and the option count."""
        options = list(range(len(domain.values))) if domain.kind == "choice" else _ends(domain)
        position = script[len(record)] if len(record) < len(script) else 0
        record.append((position, len(options)))
        return options[position]

    while True:
        record.clear()
        yield fill(point, applies, draw)
        while record and record[-1][0] + 1 == record[-1][1]:
            record.pop()
        if not record:
            return
        script = [position for position, _ in record]
        script[-1] += 1


def probes(point: Mapping[str, Any], applies: Applies, limit: int) -> list[dict[str, Any]]:
    """Return all extremes of a point, or ``limit`` random ones if there are more."""
    combinations = list(itertools.islice(extremes(point, applies), limit + 1))
    if len(combinations) <= limit:
        return combinations
    return [fill(point, applies, _random_end(number)) for number in range(limit)]


def _random_end(number: int) -> Draw:
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
    """Describe a domain, or a value with nested domains, for people: ``0.1 to 1``, ``one of 2, 4``."""
    if isinstance(value, Domain):
        if value.kind in LISTS:
            return (
                f"{'each' if value.kind == 'grid' else 'one'} of {', '.join(describe(inner) for inner in value.values)}"
            )
        low, high = value.values
        if value.kind == "randint":
            return f"a whole number from {low} to {high - 1}"
        return f"{low:g} to {high:g}{', evenly in its logarithm' if value.kind == 'loguniform' else ''}"
    if isinstance(value, SameAs):
        return f"the same as {value.key}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(inner)}" for key, inner in value.items()) + "}"
    return short(value)


def short(value: Any) -> str:
    """Format a value of a space in YAML's flow style: ``{name: osgd, k: 20}``."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {short(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, SameAs):
        return f"{{{TIE}: {value.key}}}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(short(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
