"""The space file: schema, parsing and checks, without Ray; :mod:`.expansion` expands it to trials."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, create_model, model_validator

from mbcl.config.base import (
    Component,
    ComponentOf,
    ConfigModel,
    PathConfigError,
    apply_overrides,
    validate,
)
from mbcl.config.experiment import add_plugins
from mbcl.config.yaml_reader import parse_yaml, read_yaml
from mbcl.errors import ConfigError, nearest
from mbcl.orchestration.search_space.conditions import check_conditional
from mbcl.orchestration.search_space.domains import KINDS, TIE, SameAs, parse, plain
from mbcl.orchestration.search_space.nuisance_block import Nuisance
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.orchestration.search_space.schedulers import SCHEDULERS
from mbcl.orchestration.search_space.schedulers import build as build_scheduler
from mbcl.orchestration.search_space.search_block import MODES, Search
from mbcl.orchestration.search_space.ties import check_tie, ties_in
from mbcl.orchestration.search_space.trial_kinds import (
    PRETRAINING,
    SYNTHETIC,
    VALIDATION_METRIC,
    AnyExperiment,
    TrialKind,
    kind_of,
)
from mbcl.study.metric_glossary import direction
from mbcl.study.record import EQUIVALENCE, SAFE_NAME


def check_name(name: str, key: str) -> str:
    """Return a study's name if it is safe as the name of a folder.

    Raises:
        ConfigError: if it could point outside the results folder, or is no valid folder name on every system.
    """
    if not SAFE_NAME.fullmatch(name):
        raise ConfigError(
            f"{key}: found {name!r}, allowed are at most 100 letters, digits, '.', '_', '-', first a letter or digit"
        )
    return name


class Space(ConfigModel):
    """One study: a question, a base experiment, and the domains of the swept keys."""

    name: str | None = None
    """The study's title; null: the name of the results folder. `--name` comes first."""
    question: str = ""
    """Printed above the trials and in the report."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Replicates of every setting, each given once."""
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Keys and values of the setting that others are compared with; it must be one of the settings."""
    control: Literal["equal_passes"] | None = None
    """`equal_passes`: compare settings that plan on fresh embeddings also with a baseline of as many forward passes."""
    equivalence: float = Field(default=EQUIVALENCE, gt=0, allow_inf_nan=False)
    """The difference from the baseline that does not matter, in units of the headline metric. A study keeps its own."""
    nuisance: Nuisance | None = None
    """Keys of which every setting takes its own best value, and the seeds that choose it."""
    experiment: dict[str, Any] = Field(default_factory=dict)
    """The base experiment."""
    space: dict[str, Annotated[Any, BeforeValidator(parse), PlainSerializer(plain)]]
    """By key of the experiment, the domain that varies it."""
    search: Search = Search()
    """How values are drawn, and which metric ranks settings."""
    scheduler: Annotated[Component, ComponentOf(SCHEDULERS)] = Field(default={"name": "fifo"}, validate_default=True)
    """Early stopping."""
    resources: Resources = Resources()
    """What a trial gets."""

    @property
    def kind(self) -> TrialKind:
        """The kind of the study's trials."""
        return kind_of(self.experiment)

    @property
    def nuisance_keys(self) -> frozenset[str]:
        """The swept keys of which every setting takes its own best value: those of ``nuisance`` and ties to them."""
        keys = set(self.nuisance.keys) if self.nuisance else set()
        ties = {key: value.key for key, value in self.space.items() if isinstance(value, SameAs)}
        while more := {key for key, other in ties.items() if other in keys} - keys:
            keys |= more
        return frozenset(keys)

    @model_validator(mode="before")
    @classmethod
    def _search_of_the_kind(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        experiment, search = content.get("experiment"), content.get("search", {})
        if not isinstance(search, dict):
            return content
        kind = kind_of(experiment if isinstance(experiment, dict) else {})
        search = {"metric": kind.metrics[0], **search}
        better = direction(search["metric"]) if isinstance(search["metric"], str) else 0
        return {**content, "search": ({"mode": MODES[better]} if better else {}) | search}

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        if self.name is not None:
            check_name(self.name, "name")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: found {self.seeds}, every seed may be given once")
        if "seed" in self.experiment or "seed" in self.space:
            raise ConfigError("seed: seeds are replicates of every setting, give them as the list `seeds`")
        if not self.space:
            raise ConfigError("space: it is empty; give at least one key such as sampler: {grid: [{name: shuffle}]}")
        for key in self.space:
            check_key(key, self.kind)
        check_conditional(self.space)
        for key, other in ties_in(self.space):
            check_tie(key, other, lambda other, where: check_key(other, self.kind, where))
        self._check_control()
        swept = sorted({key.split(".")[0] for key in self.space} & {"sampler", "objective"})
        if swept and self.search.metric.startswith(("train/", "plan/")):
            raise ConfigError(
                f"search.metric: {self.search.metric} is what {' and '.join(swept)} change, so it cannot rank them; "
                f"allowed: {VALIDATION_METRIC}"
            )
        self.search.check(self.kind.metrics)
        self._check_validation_metric()
        try:
            rule = build_scheduler(self.scheduler)
        except ConfigError as error:
            raise PathConfigError("scheduler", str(error)) from error
        if rule.stops and not self.kind.can_stop_early:
            raise PathConfigError(
                "scheduler.name",
                f"found {self.scheduler.name}, but trials of a synthetic study take seconds and measure nothing before "
                "their end that they could be stopped for; use fifo",
            )
        if self.nuisance is not None:
            self.nuisance.check(self)
        return self

    def _check_validation_metric(self) -> None:
        """Refuse a metric of the validation split that the trainings do not measure."""
        _, _, metric = self.search.metric.partition("val/")
        name = metric.removesuffix("/top1")
        measured = {**self.experiment.get("evaluation", {})}.get("validation_metrics", [])
        if name in ("knn", "probe") and name not in measured:
            message = (
                f"{self.search.metric} is not measured; it needs experiment.evaluation.validation_metrics: [{name}]"
            )
            raise PathConfigError("search.metric", message)

    def _check_control(self) -> None:
        if self.control is None:
            return
        for refused, reason in (
            (not self.baseline, "needs a baseline, which it trains for longer"),
            (self.kind is SYNTHETIC, "is of pretrainings; a synthetic study plans without an encoder"),
            (self.search.adaptive, "needs settings that are known before the first trial; allowed: search: random"),
        ):
            if refused:
                raise PathConfigError("control", f"{self.control} {reason}")


def check_key(key: str, kind: TrialKind, where: str = "space") -> None:
    """Refuse a key that the schema of an experiment does not have. Parameters of components are not checked here.

    Raises:
        ConfigError: beginning with ``where``.
    """
    if kind is PRETRAINING and key.split(".")[0] == "synthetic":
        raise ConfigError(
            f"{where}.{key}: the base is no synthetic study; give experiment.synthetic, which may be {{}}"
        )
    model: Any = kind.model
    for word in key.split("."):
        if word not in model.model_fields:
            raise ConfigError(f"{where}.{key}: unknown key {word!r}; {nearest(word, model.model_fields)}")
        model = model.model_fields[word].annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return  # a plain value, or a component, whose parameters are checked when it is built


_BLOCKS: dict[TrialKind, type[ConfigModel]] = {
    kind: create_model("Block", __base__=ConfigModel, experiment=(kind.model, ...)) for kind in (PRETRAINING, SYNTHETIC)
}
"""Wrappers of the experiment models: error lines of the wrapped model begin with ``experiment.``."""


def experiment_of(content: dict[str, Any], where: str) -> AnyExperiment:
    """Validate an ``experiment`` block; error lines begin with ``where`` and ``experiment.``.

    Raises:
        ConfigError: for the first wrong key or value.
    """
    block: Any = validate(_BLOCKS[kind_of(content)], {"experiment": content}, where)
    experiment: AnyExperiment = block.experiment
    return experiment


@dataclass(frozen=True)
class SpaceFile:
    """A parsed space file.

    Args:
        path: the file.
        given: its content before any override; of a study's own ``space.yaml``, what the study was given.
        overrides: the ``--set`` strings.
        space: the content after the overrides, validated.
    """

    path: Path
    given: dict[str, Any]
    overrides: tuple[str, ...]
    space: Space

    @contextmanager
    def name_in_errors(self) -> Iterator[None]:
        """Begin the text of every ConfigError of the block with the file's path."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error


def _join_swept_keys(content: dict[str, Any]) -> None:
    """Join nested keys of the ``space`` block in place: ``optimizer: {lr: {grid: ...}}`` becomes ``optimizer.lr``."""
    space = content.get("space")
    if not isinstance(space, dict):
        return
    joined: dict[str, Any] = {}
    for key, block in space.items():
        while isinstance(block, dict) and len(block) == 1 and isinstance(inner := next(iter(block.values())), dict):
            key, block = f"{key}.{next(iter(block))}", inner
        joined[key] = block
    content["space"] = joined


def _override(content: dict[str, Any], override: str) -> None:
    """Apply a ``--set`` in place. The path after ``space.`` is one swept key, even if the block has a shorter one.

    A key of an experiment may be given as ``mbcl train`` takes it, without ``experiment.``.
    """
    first = override.partition("=")[0].partition(".")[0].strip()
    if first not in Space.model_fields and any(first in kind.model.model_fields for kind in (PRETRAINING, SYNTHETIC)):
        override = f"experiment.{override.strip()}"
    path, separator, text = override.partition("=")
    block, _, key = path.strip().partition(".")
    _join_swept_keys(content)
    space = content.get(block)
    if not separator or block != "space" or not all(key.split(".")) or not isinstance(space, dict):
        apply_overrides(content, [override])
        return
    value = parse_yaml(text, f"--set {override}")
    parent, _, last = key.rpartition(".")
    if parent and last in (*KINDS, TIE):  # space.sampler.grid=[...]
        key, value = parent, {last: value}
    space[key] = value


def _load_plugins(content: dict[str, Any], files: Sequence[str]) -> None:
    """Load the plugins of the space, of its base experiment and of ``files``; the base experiment gets all of them.

    Raises:
        ConfigError: if one cannot be loaded.
    """
    experiment = content.setdefault("experiment", {})
    if not isinstance(experiment, dict):
        return  # the validation refuses it
    own = content.pop("plugins", [])
    if not isinstance(own, list):
        raise ConfigError(f"plugins: expected a list of Python files, found {own!r}")
    add_plugins(experiment, [*own, *files])


def _as_given(content: dict[str, Any], path: Path | str) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Return a space as given, and of a study's ``space.yaml`` also its ``--set`` overrides and its plugins.

    Raises:
        ConfigError: if the record of a study is damaged.
    """
    if not {"given", "resolved"} <= content.keys():
        return content, [], []
    try:
        plugins = content["resolved"]["experiment"].get("plugins", [])
        return dict(content["given"]), [str(override) for override in content["set"]], list(plugins)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: this record of a study is damaged: {error}") from error


def read_space(path: Path | str, overrides: list[str] | None = None, plugins: Sequence[str] = ()) -> SpaceFile:
    """Read a space file, apply ``--set`` overrides, load plugins, and validate the result, without data or cluster.

    The ``space.yaml`` in a results folder is the space of that study, with its own overrides first.
    ``plugins`` are Python files besides those of the space's key ``plugins``.

    Raises:
        ConfigError: naming the file, the key, what was found and what is allowed.
    """
    given, earlier, own_plugins = _as_given(read_yaml(path), path)
    overrides, plugins = [*earlier, *(overrides or [])], [*own_plugins, *plugins]
    content = copy.deepcopy(given)
    for override in overrides:
        _override(content, override)
    _join_swept_keys(content)
    try:
        _load_plugins(content, plugins)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    space = validate(Space, content, str(path))
    experiment_of(space.experiment, str(path))
    return SpaceFile(Path(path), given, tuple(overrides), space)
