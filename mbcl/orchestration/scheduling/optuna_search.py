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
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.domains import Domain, Draw
from mbcl.orchestration.search_space.expansion import (
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
from mbcl.orchestration.search_space.schema import Search, Space, SpaceFile
from mbcl.seeding import derive
from mbcl.study.record import Drawn, StudyRecord, TrialRecord

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


class OptunaSearch:
    """A :class:`~mbcl.orchestration.scheduling.trial_queue.SettingSource`: the settings that Optuna draws.

    Args:
        file: the space.
        study: the record, to which new trials are added; what it has already is told to Optuna first.
        total: how many trials there will be at most.
        added: is told of new trials.
        log: is told in a line what is left out.
    """

    def __init__(
        self,
        file: SpaceFile,
        study: StudyRecord,
        total: int,
        *,
        added: Callable[[list[TrialSpec]], None],
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._space, self._source = file.space, str(file.path)
        self._study = study
        self._total = total
        self._added = added
        self._log = log
        self._base = base_of(self._space, self._source)
        self._points = points(self._space)
        self._tuners = [_Tuner(self._space, number, point) for number, point in enumerate(self._points)]
        self._open: dict[int, tuple[_Tuner, optuna.Trial]] = {}
        self._repeats: dict[int, list[tuple[_Tuner, optuna.Trial]]] = {}
        self._seen: dict[str, int] = {}
        last = self._restore()
        most = max(samples_of(self._space, point) for point in self._points)
        self._slots = [
            (number, point)
            for number in range(most)
            for point in range(len(self._points))
            if number < samples_of(self._space, self._points[point]) and (number, point) > last
        ]

    def _restore(self) -> tuple[int, int]:
        """Tell Optuna what the study has drawn and measured, in the same order; returns the number of the last draw."""
        draws: list[tuple[Drawn, int | None]] = [(drawn, None) for drawn in self._study.left_out]
        for known, records in self._study.settings().items():
            assert records[0].drawn is not None
            draws.append((records[0].drawn, known))
        draws.sort(key=lambda found: _slot(found[0]))
        for drawn, setting in draws:
            tuner = self._tuners[drawn.point]
            trial, chosen = tuner.ask(drawn.number, drawn.values)
            if setting is None:
                self._leave_out(tuner, trial, chosen)
                continue
            self._open[setting] = tuner, trial
            self._seen[identity_of(experiment_with(self._base, chosen, self._space, self._source))] = setting
            if all(record.status in ENDED for record in self._study.settings()[setting]):
                self.tell(setting)
        return _slot(draws[-1][0]) if draws else (-1, -1)

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
            drawn = Drawn(point=point, number=number, values=trial.params)
            why = self._leave_out(tuner, trial, chosen)
            if why:
                self._study.left_out.append(drawn)
                self._log(f"note: draw {number} of point {point} {why} and is left out")
                continue
            return self._begin(tuner, trial, chosen, drawn)
        return []

    def _leave_out(self, tuner: _Tuner, trial: optuna.Trial, chosen: Mapping[str, Any]) -> str:
        """Tell Optuna of a draw that becomes no setting; why it does not, empty if it does."""
        try:
            known = self._seen.get(identity_of(experiment_with(self._base, chosen, self._space, self._source)))
        except ConfigError as error:
            tuner.tell_failure(trial)
            return f"is no experiment ({error})"
        if known is None:
            return ""
        if known in self._open:
            self._repeats.setdefault(known, []).append((tuner, trial))
        else:
            self._tell(tuner, trial, self._study.settings()[known])
        return f"repeats setting {known}"

    def _begin(self, tuner: _Tuner, trial: optuna.Trial, chosen: Mapping[str, Any], drawn: Drawn) -> list[str]:
        experiment = experiment_with(self._base, chosen, self._space, self._source)
        setting = max((record.setting for record in self._study.trials.values()), default=-1) + 1
        self._seen[identity_of(experiment)] = setting
        self._open[setting] = tuner, trial
        parameters = resolved(experiment, chosen)
        specs = list(replicate(self._space, setting, parameters, experiment, self._total))
        evaluation = self._evaluation(chosen)
        self._study.trials.update({spec.trial_id: record_of(spec, drawn, evaluation) for spec in specs})
        self._added(specs)
        return [spec.trial_id for spec in specs]

    def _evaluation(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The block that takes the place of a new setting's own; empty if no ``--eval-only`` gave the study another.

        Any trial's will do, for what is swept of it is the new setting's.
        """
        later = next((record.evaluation for record in self._study.trials.values() if record.evaluation), None)
        if later is None:
            return {}
        base = {**self._base, "evaluation": later}
        return self._space.kind.evaluation(experiment_with(base, chosen, self._space, self._source))

    def tell(self, setting: int) -> None:
        """All trials of a setting have ended: of it, and of the draws that repeated it meanwhile."""
        records = self._study.settings()[setting]
        for tuner, trial in (self._open.pop(setting), *self._repeats.pop(setting, ())):
            self._tell(tuner, trial, records)

    def _tell(self, tuner: _Tuner, trial: optuna.Trial, records: list[TrialRecord]) -> None:
        metric = self._study.metric
        values = [record.metrics.get(metric) for record in records if record.status == "finished"]
        measured = [float(value) for value in values if value is not None]
        stopped = records[0].stopped
        if len(measured) == len(records):  # the mean over some seeds is no measure beside that over others
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


def _slot(drawn: Drawn) -> tuple[int, int]:
    """Its place in the order of draws: each point once in turn."""
    return drawn.number, drawn.point


def _drawing(trial: optuna.Trial) -> Draw:
    def draw(path: str, domain: Domain) -> Any:
        if domain.kind == "choice":
            return trial.suggest_categorical(path, list(range(len(domain.values))))
        low, high = domain.values
        if domain.kind == "randint":
            return trial.suggest_int(path, low, high - 1)
        return trial.suggest_float(path, low, high, log=domain.kind == "loguniform")

    return draw
