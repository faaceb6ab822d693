"""Replay of a study: the trials that results have added so far, rebuilt from its record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mbcl.errors import ConfigError
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.confirmation import with_confirmations
from mbcl.orchestration.search_space.expansion import (
    Trials,
    TrialSpec,
    base_of,
    experiment_with,
    points,
    replicate,
    resolved,
)
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.study.record import Drawn, StudyRecord


def with_drawn_trials(file: SpaceFile, trials: Trials, study: StudyRecord) -> Trials:
    """Return the trials of a space. Those that depend on results are rebuilt from the study's record.

    They are the draws of an adaptive search, and the choices of nuisance values.

    Raises:
        ConfigError: if the record does not belong to the space.
    """
    space = file.space
    if space.nuisance is not None:
        with file.name_in_errors():
            return with_confirmations(space, trials, study)
    if not space.search.adaptive:
        return trials
    base, grid = base_of(space), points(space)
    specs: list[TrialSpec] = []
    with file.name_in_errors():
        for setting, records in study.settings().items():
            chosen = _replayed(grid, records[0].drawn, f"setting {setting}")
            experiment = experiment_with(base, chosen, space)
            specs += replicate(space.seeds, setting, resolved(experiment, chosen), experiment, trials.total)
        for number, drawn in enumerate(study.left_out):
            _replayed(grid, drawn, f"draw {number} that was left out")
    return replace(trials, specs=tuple(specs))


def _replayed(grid: list[dict[str, Any]], drawn: Drawn | None, what: str) -> dict[str, Any]:
    """Return the values of the swept keys of a recorded draw; an error text begins with ``what``."""
    if drawn is None or not 0 <= drawn.point < len(grid):
        raise ConfigError(f"{what} of the study has no draw of this space; study.json is damaged")
    try:
        return domains.fill(grid[drawn.point], applies, lambda path, domain: drawn.values[path])
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{what} was drawn from another space: {error}") from error
