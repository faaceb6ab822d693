"""The ``resources`` block of a space file: what one trial gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from mbcl.config.base import ConfigModel
from mbcl.errors import ConfigError, nearest

MOST_WORKERS = 4096
"""Of a trial. Each number of a range is looked at."""


def _one_of(*allowed: Any, number: type | None = None, least: float = 0) -> BeforeValidator:
    """A validator for ``auto`` or a number or a switch, with one line instead of one error a branch of the union."""

    def check(value: Any) -> Any:
        if isinstance(value, bool | str):
            fits = any(type(value) is type(word) and value == word for word in allowed)
        else:
            whole = isinstance(value, int)
            fits = number is not None and (whole or (number is float and isinstance(value, float)))
            fits = fits and math.isfinite(value) and value >= least
        if fits:
            return value
        words = [{True: "true", False: "false"}.get(word, word) for word in allowed]
        if number is not None:
            words.append(f"a {'whole ' if number is int else ''}number of at least {least:g}")
        raise ConfigError(f"found {value!r}, allowed: {', '.join(words)}")

    return BeforeValidator(check)


def _workers(value: Any) -> Any:
    """A whole number, or a block with the least and the most."""
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("min", "max"):
                raise ConfigError(f"unknown key {key!r}; {nearest(str(key), ('min', 'max'))}")
    ends: list[Any] = [value.get("min"), value.get("max")] if isinstance(value, Mapping) else [value, value]
    if not all(type(end) is int and 1 <= end <= MOST_WORKERS for end in ends) or ends[0] > ends[1]:
        raise ConfigError(
            f"found {value!r}, allowed: a whole number from 1 to {MOST_WORKERS:,}, or a range such as "
            f"{{min: 1, max: 4}}"
        )
    return value


class Resources(ConfigModel):
    """What one trial gets; :mod:`mbcl.orchestration.cluster.capacity` decides what ``auto`` is.

    With a range of ``workers`` a trial begins, and begins again after a loss, with as many as fit at that moment and
    share its batch evenly.
    """

    workers: Annotated[Any, BeforeValidator(_workers)] = 1
    gpu: Annotated[Any, _one_of("auto", True, False)] = "auto"
    cpus_per_worker: Annotated[Any, _one_of("auto", number=float, least=0.1)] = "auto"
    max_concurrent_trials: Annotated[Any, _one_of("auto", number=int, least=1)] = "auto"

    @property
    def numbers_of_workers(self) -> range:
        """Those that a trial may have, ascending."""
        ends = self.workers.values() if isinstance(self.workers, Mapping) else [self.workers]
        return range(min(ends), max(ends) + 1)
