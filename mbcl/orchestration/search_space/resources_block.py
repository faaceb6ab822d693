"""The ``resources`` block of a space file: the resources of one trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from mbcl.config.base import ConfigModel
from mbcl.errors import ConfigError, nearest

MAX_WORKERS = 4096
"""Maximum workers of a trial. It bounds the work on a range, of which every number is checked."""


def _one_of(*allowed: Any, number: type | None = None, minimum: float = 0) -> tuple[BeforeValidator, WithJsonSchema]:
    """Return a validator of ``auto``, a switch or a number, and its schema. A union would give one error a branch.

    Args:
        allowed: the words and switches.
        number: ``int`` or ``float`` if numbers are allowed, too.
        minimum: the smallest number.
    """

    def check(value: Any) -> Any:
        if isinstance(value, bool | str):
            fits = any(type(value) is type(word) and value == word for word in allowed)
        else:
            whole = isinstance(value, int)
            fits = number is not None and (whole or (number is float and isinstance(value, float)))
            fits = fits and math.isfinite(value) and value >= minimum
        if fits:
            return value
        options = [{True: "true", False: "false"}.get(word, word) for word in allowed]
        if number is not None:
            options.append(f"a {'whole ' if number is int else ''}number of at least {minimum:g}")
        raise ConfigError(f"found {value!r}, allowed: {', '.join(options)}")

    kinds = [{"enum": list(allowed)}]
    if number is not None:
        kinds.append({"type": "integer" if number is int else "number", "minimum": minimum})  # type: ignore[dict-item]
    return BeforeValidator(check), WithJsonSchema(kinds[0] if number is None else {"anyOf": kinds})


def _workers(value: Any) -> Any:
    """Validate a whole number of workers, or a range with ``min`` and ``max``."""
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("min", "max"):
                raise ConfigError(f"unknown key {key!r}; {nearest(str(key), ('min', 'max'))}")
    ends: list[Any] = [value.get("min"), value.get("max")] if isinstance(value, Mapping) else [value, value]
    if not all(type(end) is int and 1 <= end <= MAX_WORKERS for end in ends) or ends[0] > ends[1]:
        raise ConfigError(
            f"found {value!r}, allowed: a whole number from 1 to {MAX_WORKERS:,}, or a range such as {{min: 1, max: 4}}"
        )
    return value


_NUMBER = {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}
_RANGE = {"type": "object", "properties": {"min": _NUMBER, "max": _NUMBER}}
_WORKERS_SCHEMA = {"anyOf": [_NUMBER, {**_RANGE, "required": ["min", "max"], "additionalProperties": False}]}


class Resources(ConfigModel):
    """The resources of one trial; :mod:`mbcl.orchestration.cluster.capacity` resolves ``auto``.

    With a range of ``workers`` a trial starts with the most workers that fit at that moment and share its batch evenly.
    A restart after the loss of a worker chooses anew.
    """

    workers: Annotated[Any, BeforeValidator(_workers), WithJsonSchema(_WORKERS_SCHEMA)] = 1
    """Workers of a trial, or a range such as `{min: 1, max: 4}`, of which those are taken that fit."""
    gpu: Annotated[Any, *_one_of("auto", True, False)] = "auto"
    """Whether each worker has a GPU; `auto`: where there are any."""
    cpus_per_worker: Annotated[Any, *_one_of("auto", number=float, minimum=0.1)] = "auto"
    """Cores of a worker; `auto`: one, or more where trials are fewer than cores."""
    max_concurrent_trials: Annotated[Any, *_one_of("auto", number=int, minimum=1)] = "auto"
    """Trials at a time; `auto`: as many as fit into the cores, and of a local Ray into the memory."""

    @property
    def numbers_of_workers(self) -> range:
        """The numbers of workers that a trial may have, ascending."""
        ends = self.workers.values() if isinstance(self.workers, Mapping) else [self.workers]
        return range(min(ends), max(ends) + 1)
