"""The ``search`` block of a space file: how settings are drawn, and which metric ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.errors import nearest
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.trial_kinds import VALIDATION_METRIC
from mbcl.study.metric_glossary import direction

SAMPLER_OPTIONS = ("n_startup_trials", "n_ei_candidates", "multivariate", "group", "constant_liar")
"""Parameters of Optuna's TPE sampler that a space file may give."""
MODES = {1: "max", -1: "min"}
"""``search.mode`` by the direction in which a metric is better."""


class Search(ConfigModel):
    """The ``search`` block: how settings are drawn and which metric ranks them.

    A space fills in the default metric of its kind of trials. The keys after ``seed`` are parameters of Optuna's
    sampler; null means its default.
    """

    name: Literal["random", "optuna"] = "random"
    """`random` draws independently; `optuna` lets its TPE sampler propose settings from the results of earlier ones,
    separately for every point of the grids."""
    num_samples: int = Field(default=1, ge=1)
    """Settings drawn for each point of the grids."""
    metric: str = VALIDATION_METRIC
    """What ranks settings: a metric of the validation split, or of the training or its plans where neither sampler nor
    objective is swept."""
    mode: Literal["min", "max"] = "max"
    """Which end of the metric is better; by default its own."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    n_startup_trials: int | None = Field(default=None, ge=0)
    """Settings drawn at random before the first proposal."""
    n_ei_candidates: int | None = Field(default=None, ge=1)
    """Candidates of which a proposal is the best."""
    multivariate: bool | None = None
    """Propose all keys together."""
    group: bool | None = None
    """Propose keys in groups that occur together; needs `multivariate: true`."""
    constant_liar: bool | None = None
    """Count running trials as bad ones."""

    @property
    def adaptive(self) -> bool:
        """Whether settings depend on the results of earlier ones."""
        return self.name != "random"

    @property
    def options(self) -> dict[str, Any]:
        """The parameters of Optuna's sampler that the file gives."""
        return {key: value for key in SAMPLER_OPTIONS if (value := getattr(self, key)) is not None}

    @model_validator(mode="after")
    def _options_are_used(self) -> Search:
        if not self.adaptive and self.options:
            key, value = next(iter(self.options.items()))
            raise PathConfigError(key, f"found {short(value)}, which only name: optuna has, not name: {self.name}")
        if self.group and not self.multivariate:
            raise PathConfigError("group", "found true, which needs multivariate: true")
        return self

    def check(self, searchable: Sequence[str]) -> None:
        """Refuse a metric that is not among the searchable ones, or a mode that is its worse end or is missing.

        Raises:
            PathConfigError: naming ``search`` or ``search.mode``.
        """
        if self.metric not in searchable:
            reason = " (the test split is read once, at the end)" if self.metric.startswith("retrieval/") else ""
            raise PathConfigError(
                "search", f"metric {self.metric!r} cannot be searched on{reason}; {nearest(self.metric, searchable)}"
            )
        better = direction(self.metric)
        if not better and "mode" not in self.model_fields_set:
            raise PathConfigError(
                "search.mode", f"this key is missing, and {self.metric} has no better end of its own; allowed: min, max"
            )
        if better and self.mode != MODES[better]:
            which = "higher" if better > 0 else "lower"
            raise PathConfigError(
                "search.mode",
                f"found {self.mode!r}, but {self.metric} is better the {which} it is; allowed: {MODES[better]}",
            )
