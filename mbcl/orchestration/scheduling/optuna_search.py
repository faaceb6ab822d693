"""Adaptive search: Optuna's TPE proposes settings from the validation results of earlier ones. Imports no Ray.

Every point of the grids has a separate search, so that a grid of samplers gives each the same tuning budget. Optuna
gets the mean over the seeds of a setting, so that no single lucky seed makes a setting win.

Optuna stores nothing on disk. ``study.json`` has every draw and every result, and ``--resume`` replays them. Each draw
has its own seed, so that with one trial at a time the proposals are the same whether the sweep was interrupted or not.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.domains import Domain, Draw
from mbcl.orchestration.search_space.expansion import (
    TrialSpec,
    base_of,
    experiment_with,
    points,
    record_of,
    replicate,
    resolved,
    samples_of,
)
from mbcl.orchestration.search_space.schema import Space, SpaceFile
from mbcl.orchestration.search_space.search_block import Search
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment, identity_of
from mbcl.seeding import derive
from mbcl.study.record import Drawn, StudyRecord, TrialRecord

if TYPE_CHECKING:
    import optuna


def check_installed(search: Search) -> None:
    """Refuse a search whose package is not installed.

    Raises:
        ConfigError: naming the package and the command that installs it.
    """
    if search.name == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "search.name: optuna needs the package optuna, which is not installed: pip install 'mbcl[ray]'"
            ) from error


class OptunaSearch:
    """A :class:`~mbcl.orchestration.scheduling.trial_queue.SettingSource` of the settings that Optuna draws.

    Args:
        file: the space.
        study: the record. Its draws and results are replayed to Optuna first, and new trials are added to it.
        total: maximum number of trials of the study.
        added: called with the new trials of each proposed setting.
        log: called with a line for each draw that is left out.
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
        self._file, self._space = file, file.space
        self._study = study
        self._total = total
        self._added = added
        self._log = log
        self._base = base_of(self._space)
        grid = points(self._space)
        self._tuners = [_Tuner(self._space, number, point) for number, point in enumerate(grid)]
        self._open: dict[int, tuple[_Tuner, optuna.Trial]] = {}
        self._repeats: dict[int, list[tuple[_Tuner, optuna.Trial]]] = {}
        self._seen: dict[str, int] = {}
        last = self._restore()
        slots = ((n, point) for point, each in enumerate(grid) for n in range(samples_of(self._space, each)))
        self._slots = sorted(slot for slot in slots if slot > last)

    def _restore(self) -> tuple[int, int]:
        """Replay the study's draws and results to Optuna in their order; return the slot of the last draw."""
        draws: list[tuple[Drawn, int | None]] = [(drawn, None) for drawn in self._study.left_out]
        for number, records in self._study.settings().items():
            assert records[0].drawn is not None
            draws.append((records[0].drawn, number))
        draws.sort(key=lambda draw: _slot(draw[0]))
        for drawn, setting in draws:
            tuner = self._tuners[drawn.point]
            trial, chosen = tuner.ask(drawn.number, drawn.values)
            if setting is None:
                self._leave_out(tuner, trial, chosen)
                continue
            self._open[setting] = tuner, trial
            self._seen[identity_of(self._experiment(self._base, chosen))] = setting
            if all(map(self._study.is_result, self._study.settings()[setting])):
                self.tell(setting)
        return _slot(draws[-1][0]) if draws else (-1, -1)

    @property
    def left(self) -> int:
        """Number of trials that may still be drawn."""
        return len(self._slots) * len(self._space.seeds)

    def propose(self) -> list[str]:
        """Draw a new setting, add its trials to the study and return their names; empty if all have been drawn."""
        while self._slots:
            number, point = self._slots.pop(0)
            tuner = self._tuners[point]
            trial, chosen = tuner.ask(number)
            drawn = Drawn(point=point, number=number, values=trial.params)
            reason = self._leave_out(tuner, trial, chosen)
            if reason:
                self._study.left_out.append(drawn)
                self._log(f"note: draw {number} of point {point} {reason} and is left out")
                continue
            return self._add_setting(tuner, trial, chosen, drawn)
        return []

    def _leave_out(self, tuner: _Tuner, trial: optuna.Trial, chosen: Mapping[str, Any]) -> str:
        """Report a draw that becomes no setting to Optuna; return the reason, empty if the draw becomes one.

        A draw that repeats an earlier setting gets that setting's result, now or when the setting ends.
        """
        try:
            setting = self._seen.get(identity_of(self._experiment(self._base, chosen)))
        except ConfigError as error:
            tuner.tell(trial, ())
            return f"is no experiment ({error})"
        if setting is None:
            return ""
        if setting in self._open:
            self._repeats.setdefault(setting, []).append((tuner, trial))
        else:
            tuner.tell(trial, self._study.settings()[setting])
        return f"repeats setting {setting}"

    def _add_setting(self, tuner: _Tuner, trial: optuna.Trial, chosen: Mapping[str, Any], drawn: Drawn) -> list[str]:
        experiment = self._experiment(self._base, chosen)
        setting = max((record.setting for record in self._study.trials.values()), default=-1) + 1
        self._seen[identity_of(experiment)] = setting
        self._open[setting] = tuner, trial
        parameters = resolved(experiment, chosen)
        specs = list(replicate(self._space.seeds, setting, parameters, experiment, self._total))
        evaluation = self._evaluation(chosen)
        self._study.trials.update({spec.trial_id: record_of(spec, drawn, evaluation) for spec in specs})
        self._added(specs)
        return [spec.trial_id for spec in specs]

    def _evaluation(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the evaluation block that overrides a new setting's own; empty unless an ``--eval-only`` changed it.

        The block of any trial serves: its swept keys are set to the new setting's values.
        """
        block = next((record.evaluation for record in self._study.trials.values() if record.evaluation), None)
        if block is None:
            return {}
        base = {**self._base, "evaluation": block}
        return self._space.kind.evaluation(self._experiment(base, chosen))

    def _experiment(self, base: dict[str, Any], chosen: Mapping[str, Any]) -> AnyExperiment:
        """Return the experiment of a setting; an error names the space file."""
        with self._file.name_in_errors():
            return experiment_with(base, chosen, self._space)

    def tell(self, setting: int) -> None:
        """Report the result of a setting, whose trials have all ended, for its draw and for draws that repeat it."""
        records = self._study.settings()[setting]
        for tuner, trial in (self._open.pop(setting), *self._repeats.pop(setting, ())):
            tuner.tell(trial, records)


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
            number: number of the draw at this point, which its seed depends on.
            values: the recorded draw to replay, by path; None to draw a new one.

        Returns:
            Optuna's trial, and the values of the swept keys.
        """
        self._study.sampler = self._sampler(number)
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        return trial, domains.fill(self._template, applies, _drawing(trial))

    def tell(self, trial: optuna.Trial, records: Sequence[TrialRecord]) -> None:
        """Report the mean over a setting's seeds; as pruned, its value where it was stopped early; else a failure.

        One that diverged is pruned without a value, which TPE takes for the worst; it ignores failures.
        """
        import optuna

        values = [record.metrics.get(self._search.metric) for record in records if record.status == "finished"]
        measured = [float(value) for value in values if value is not None]
        stopped = records[0].stopped if records else None
        if records and len(measured) == len(records):  # means over different sets of seeds are not comparable
            self._study.tell(trial, statistics.fmean(measured))
        elif stopped is not None and stopped.value is not None:
            trial.report(stopped.value, step=stopped.epoch)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif any(record.has_diverged for record in records):
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _slot(drawn: Drawn) -> tuple[int, int]:
    """Return the position of a draw in the round-robin order over the points."""
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
