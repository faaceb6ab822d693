"""Adaptive search: Optuna's TPE proposes settings from the validation results of those before. No Ray here.

Every point of the grids has a search of its own, so that a grid of samplers tunes each as hard as the others. What is
told is the mean over the seeds of a setting: a seed is never what makes a setting win.

Optuna keeps nothing on disk. ``study.json`` has every draw and every result, and a study that goes on is told them
again; each draw has a seed of its own, so that one trial at a time proposes the same whether it was cut or not.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError
from mbcl.orchestration import domains
from mbcl.orchestration.conditional import applies
from mbcl.orchestration.domains import Domain, Draw
from mbcl.orchestration.space import Search, Space, SpaceFile
from mbcl.orchestration.trials import (
    Trials,
    TrialSpec,
    base_of,
    experiment_with,
    identity_of,
    points,
    record_of,
    replicate,
    resolved,
    samples_of,
)
from mbcl.seeding import derive
from mbcl.study import Drawn, StudyRecord, TrialRecord

if TYPE_CHECKING:
    import optuna

ENDED = ("finished", "stopped")


def check_installed(search: Search) -> None:
    """Refuse a search whose package is missing.

    Raises:
        ConfigError: naming what to install.
    """
    if search.name == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "search.name: optuna needs the package optuna, which is not installed: pip install 'mbcl[ray]'"
            ) from error


def known(file: SpaceFile, trials: Trials, study: StudyRecord) -> Trials:
    """The trials of a space with those that an adaptive search has drawn so far, made again from its record.

    Raises:
        ConfigError: if the record does not belong to the space.
    """
    space, source = file.space, str(file.path)
    if not space.search.adaptive:
        return trials
    base, grid = base_of(space, source), points(space)
    found: list[TrialSpec] = []
    for setting, records in study.settings().items():
        drawn = records[0].drawn
        if drawn is None or not 0 <= drawn.point < len(grid):
            raise ConfigError(
                f"{source}: setting {setting} of the study has no draw of this space; study.json is damaged"
            )
        try:
            chosen = domains.fill(grid[drawn.point], applies, _replaying(drawn.values))
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{source}: setting {setting} was drawn from another space: {error}") from error
        experiment = experiment_with(base, chosen, space, source)
        found += replicate(space, setting, resolved(experiment, chosen), experiment, trials.total)
    return replace(trials, specs=tuple(found))


class Proposals:
    """A :class:`~mbcl.orchestration.course.Source`: the settings that Optuna draws.

    Args:
        file: the space.
        study: the record, to which new trials are added; what it has already is told to Optuna first.
        total: how many trials there will be at most.
        added: is told of new trials.
        say: is told in a line what is left out.
    """

    def __init__(
        self,
        file: SpaceFile,
        study: StudyRecord,
        total: int,
        *,
        added: Callable[[list[TrialSpec]], None],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._space, self._source = file.space, str(file.path)
        self._study = study
        self._total = total
        self._added = added
        self._say = say
        self._base = base_of(self._space, self._source)
        self._points = points(self._space)
        self._tuners = [_Tuner(self._space, number, point) for number, point in enumerate(self._points)]
        self._open: dict[int, tuple[_Tuner, optuna.Trial]] = {}
        self._seen: dict[str, int] = {}
        most = max(samples_of(self._space, point) for point in self._points)
        done = self._restore()
        self._slots = [
            (number, point)
            for number in range(most)
            for point in range(len(self._points))
            if number < samples_of(self._space, self._points[point]) and (number, point) not in done
        ]

    def _restore(self) -> set[tuple[int, int]]:
        """Tell Optuna what the study has drawn and measured; returns which draws these were."""
        done = set()
        for setting, records in self._study.settings().items():
            drawn = records[0].drawn
            assert drawn is not None
            tuner = self._tuners[drawn.point]
            trial, chosen = tuner.ask(drawn.number, drawn.values)
            self._open[setting] = tuner, trial
            self._seen[identity_of(experiment_with(self._base, chosen, self._space, self._source))] = setting
            done.add((drawn.number, drawn.point))
            if all(record.status in ENDED for record in records):
                self.tell(setting)
        return done

    @property
    def left(self) -> int:
        """How many trials may still be drawn."""
        return len(self._slots) * len(self._space.seeds)

    def propose(self) -> list[str]:
        """The trials of a new setting, which the study now has; empty if all have been drawn."""
        while self._slots:
            number, point = self._slots.pop(0)
            tuner = self._tuners[point]
            trial, chosen = tuner.ask(number)
            try:
                experiment = experiment_with(self._base, chosen, self._space, self._source)
            except ConfigError as error:
                self._say(f"note: a draw is left out: {error}")
                tuner.tell_failure(trial)
                continue
            known = self._seen.get(identity_of(experiment))
            if known is not None:
                self._say(f"note: draw {number} of point {point} repeats setting {known} and is left out")
                self._tell(tuner, trial, self._study.settings()[known])
                continue
            return self._begin(tuner, trial, chosen, experiment, Drawn(point=point, number=number, values=trial.params))
        return []

    def _begin(
        self, tuner: _Tuner, trial: optuna.Trial, chosen: Mapping[str, Any], experiment: Any, drawn: Drawn
    ) -> list[str]:
        setting = max((record.setting for record in self._study.trials.values()), default=-1) + 1
        self._seen[identity_of(experiment)] = setting
        self._open[setting] = tuner, trial
        parameters = resolved(experiment, chosen)
        specs = list(replicate(self._space, setting, parameters, experiment, self._total))
        self._study.trials.update({spec.trial_id: record_of(spec, drawn) for spec in specs})
        self._added(specs)
        return [spec.trial_id for spec in specs]

    def tell(self, setting: int) -> None:
        """All trials of a setting have ended."""
        self._tell(*self._open.pop(setting), self._study.settings()[setting])

    def _tell(self, tuner: _Tuner, trial: optuna.Trial, records: list[TrialRecord]) -> None:
        metric = self._study.metric
        values = [record.metrics.get(metric) for record in records if record.status == "finished"]
        measured = [float(value) for value in values if value is not None]
        stopped = records[0].stopped
        if measured:
            tuner.tell(trial, statistics.fmean(measured))
        elif stopped is not None and stopped.value is not None:
            tuner.tell_stopped(trial, stopped.epoch, stopped.value)
        else:
            tuner.tell_failure(trial)


class _Tuner:
    """The search at one point of the grids."""

    def __init__(self, space: Space, point: int, template: Mapping[str, Any]) -> None:
        import optuna

        self._search = space.search
        self._point = point
        self._template = template
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="maximize" if self._search.mode == "max" else "minimize", sampler=self._sampler(0)
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        seed = derive(self._search.seed, "optuna", self._point, number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, **self._search.options)

    def ask(self, number: int, values: Mapping[str, Any] | None = None) -> tuple[optuna.Trial, dict[str, Any]]:
        """Draw a setting.

        Args:
            number: which draw of this point it is.
            values: what was drawn already, by path; None to draw anew.

        Returns:
            Optuna's trial, and the values of the swept keys.
        """
        self._study.sampler = self._sampler(number)
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        return trial, domains.fill(self._template, applies, _drawing(trial))

    def tell(self, trial: optuna.Trial, value: float) -> None:
        """What a setting has reached."""
        self._study.tell(trial, value)

    def tell_stopped(self, trial: optuna.Trial, epoch: int, value: float) -> None:
        """What a setting had reached when it was stopped."""
        import optuna

        trial.report(value, step=epoch)
        self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def tell_failure(self, trial: optuna.Trial) -> None:
        """A setting has no result."""
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _replaying(values: Mapping[str, Any]) -> Draw:
    return lambda path, domain: values[path]


def _drawing(trial: optuna.Trial) -> Draw:
    def draw(path: str, domain: Domain) -> Any:
        if domain.kind == "choice":
            return trial.suggest_categorical(path, list(range(len(domain.values))))
        low, high = domain.values
        if domain.kind == "randint":
            return trial.suggest_int(path, low, high - 1)
        return trial.suggest_float(path, low, high, log=domain.kind == "loguniform")

    return draw
