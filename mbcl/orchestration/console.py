"""What a person sees: a progress display, one line a finished trial, a table at the end. The only place that prints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console as Screen
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mbcl.engine.metrics_log import METRICS_FILE, row_of
from mbcl.engine.protocols import Row
from mbcl.errors import pluralize
from mbcl.io.store import Store
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Concurrency, TrialResources
from mbcl.orchestration.results_folder.layout import trial_folder
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.search_space.describe import by_seeds, domain_lines, plan_lines
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec
from mbcl.orchestration.search_space.schema import Space
from mbcl.orchestration.trial.preflight import PreflightReport
from mbcl.study.statistics import Estimate, primary_metrics, summarise

TABLE_METRICS = ("retrieval/u2v/top1", "knn/top1", "probe/top1", "plan/lift", "synthetic/excess")
"""Beside the metric of the search and the first primary one, those of them that were measured."""
PLAIN_WIDTH = 160
"""Columns where the output is not a terminal: nothing there wraps a table."""


class _Screen(Screen):
    """A screen that nobody may read any more, as after ``| head``: then what is printed goes nowhere."""

    def on_broken_pipe(self) -> None:
        """Print nowhere from now on, and let the caller go on. Rich would end the process wherever it is."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class _ScreenOfStudy(_Screen):
    def on_broken_pipe(self) -> None:
        """A study that nobody watches any more is interrupted: what is done is kept, and it can go on."""
        super().on_broken_pipe()
        signals.interrupt()


class Console:
    """A :class:`~mbcl.orchestration.tune.run_trials.TrialObserver` that prints.

    Args:
        space: the space.
        store: the results folder.
        opened: the study whose trials run.
        quiet: whether only the last lines are printed.
    """

    def __init__(self, space: Space, store: Store, opened: OpenedStudy, *, quiet: bool) -> None:
        self._space = space
        self._store = store
        self._opened = opened
        self._study = opened.record
        self._labels: dict[int, str] = {}
        self._quiet = quiet
        self._screen = _ScreenOfStudy(highlight=False)
        if not self._screen.is_terminal:
            self._screen.width = PLAIN_WIDTH
        self._progress: Progress | None = None
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def log(self, text: str) -> None:
        """One line, unless quiet."""
        if not self._quiet:
            self._screen.print(escape(text), soft_wrap=True)

    def print_summary(self, text: str) -> None:
        """One of the last lines, which are printed always."""
        self._screen.print(escape(text), soft_wrap=True)

    def print_header(
        self,
        num_todo: int,
        need: TrialResources,
        fit: Concurrency,
        notes: Sequence[str],
        *,
        evaluation_alone: bool = False,
    ) -> None:
        """Say what is about to happen, and what a person should know about it."""
        total, seeds = self._opened.trials.total, len(self._space.seeds)
        self.log(f"{self._study.name}: {self._study.question}" if self._study.question else self._study.name)
        most = "at most " if self._opened.trials.probes else ""
        done = f", {total - num_todo} of them done" if num_todo < total else ""
        counts = f"{most}{pluralize(total, 'trial')}{done}: {by_seeds(total // seeds, seeds)}"
        self.log(f"{_to_evaluate(num_todo) if evaluation_alone else counts}; {fit}, each {need}")
        for line in () if evaluation_alone else plan_lines(self._space):
            self.log(line)
        for note in (*self._opened.trials.notes, *notes):
            self.log(f"note: {note}")

    @contextmanager
    def progress(self, num_todo: int) -> Iterator[None]:
        """The progress display, on a terminal; elsewhere nothing but the lines."""
        if self._quiet or not self._screen.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._screen, transient=True) as self._progress:
            self._all = self._progress.add_task("trials", total=num_todo)
            try:
                yield
            finally:
                self._progress = None

    def on_trial_start(self, trial_id: str) -> None:
        """A trial begins: a bar of epochs."""
        if self._progress is not None:
            label = f"{self._words(trial_id)}: starting"
            num_epochs = self._space.kind.num_epochs(self._opened.specs[trial_id].experiment)
            self._tasks[trial_id] = self._progress.add_task(escape(label), total=num_epochs)

    def poll(self, trial_ids: Sequence[str]) -> None:
        """Move the bars of running trials, from the metrics that they have written."""
        if self._progress is None:
            return
        for trial_id in trial_ids:
            row = _last_row(self._store, trial_id)
            if row is not None and trial_id in self._tasks:
                words = f"{self._words(trial_id)}: loss {_number(row.get('train/loss'))}"
                if row.get("val/retrieval/top1") is not None:
                    words += f", val {_number(row['val/retrieval/top1'])}"
                self._progress.update(self._tasks[trial_id], completed=row.get("epoch", 0), description=escape(words))

    def on_waiting(self, number: int) -> None:
        """One line about trials that wait for room."""
        trials = f"{number} trial{'s wait' if number > 1 else ' waits'}"
        self.log(f"waiting: {trials} for room on the cluster, which others use or whose nodes are yet to come")

    def on_trial_end(self, trial_id: str) -> None:
        """One line for a trial that has ended."""
        record = self._study.trials[trial_id]
        words = self._words(trial_id)
        if record.status == "failed":
            self.log(f"FAILED    {words}  {record.error}")
        elif record.stopped:
            self.log(f"stopped   {words}  {record.stopped.describe()}")
        else:
            metric = self._study.metric
            seconds = record.seconds.get("total")
            took = "" if seconds is None else f"  {seconds:.1f} s"
            self.log(f"finished  {words}  {metric} {_number(record.metrics.get(metric))}{took}")
        self._advance(trial_id)

    def on_evaluation_end(self, trial_id: str, error: str) -> None:
        """One line for a trial that was evaluated again, or could not be."""
        self.log(f"FAILED    {self._words(trial_id)}  {error}" if error else f"evaluated {self._words(trial_id)}")
        self._advance(trial_id)

    def _advance(self, trial_id: str) -> None:
        if self._progress is not None and self._all is not None:
            self._progress.advance(self._all)
            if trial_id in self._tasks:
                self._progress.remove_task(self._tasks.pop(trial_id))

    def _words(self, trial_id: str) -> str:
        record = self._study.trials[trial_id]
        if record.setting not in self._labels:
            self._labels = {setting.setting: setting.label for setting in summarise(self._study)}
        return f"{trial_id}  {self._labels[record.setting]}, seed {record.seed}"

    def print_table(self) -> None:
        """The final table: one row a setting, over its finished seeds."""
        settings = summarise(self._study)
        measured = {metric for setting in settings for metric in setting.metrics}
        beside = (name for name in TABLE_METRICS if name in measured)
        metrics = list(dict.fromkeys([self._study.metric, *primary_metrics(self._study)[:1], *beside]))
        table = Table("setting", "seeds", *metrics, title=f"{self._study.name}: mean [95 % interval]")
        for setting in settings:
            cells = [_interval(setting.metrics.get(metric)) for metric in metrics]
            stopped = " stopped" if setting.statuses.get("stopped") else ""
            seeds = f"{setting.n}/{sum(setting.statuses.values())}{stopped}"
            table.add_row(escape(setting.label), seeds, *map(escape, cells))
        self._screen.print(table)
        for trial_id, record in self._study.trials.items():
            if record.status == "failed":
                self.print_summary(f"FAILED    {trial_id}  {record.error}")


def dry_run(
    specs: Sequence[TrialSpec],
    trials: Trials,
    space: Space,
    fit: tuple[TrialResources, Concurrency] | None,
    location: str,
    checked: PreflightReport | None,
    *,
    evaluation_alone: bool = False,
) -> None:
    """List every trial that would run with its parameters, the resources that it needs and what planning costs it.

    Args:
        specs: those that would run, as far as they are known.
        trials: all of the space.
        space: what is asked for.
        fit: the need of one and how many run at a time; None where a cluster decides that.
        location: the results folder.
        checked: what the data say; None where only a cluster can read them.
        evaluation_alone: whether those that would run are evaluated and nothing else.
    """
    screen = _Screen(highlight=False)

    def log(text: str) -> None:
        screen.print(escape(text), soft_wrap=True)

    need, together = ("what the cluster gives", "") if fit is None else (str(fit[0]), f", {fit[1]}")
    for line in () if evaluation_alone else (*domain_lines(space), *plan_lines(space)):
        log(line)
    for spec in specs:
        parameters = ", ".join(f"{key} = {short(value)}" for key, value in spec.parameters.items())
        cost = checked.planning.get(spec.setting) if checked else None
        log(f"{spec.trial_id}  seed {spec.seed}  {parameters}  [{need}]" + (f"  {cost}" if cost else ""))
    for note in (*trials.notes, *(checked.notes if checked else ("the data are checked on the cluster",))):
        log(f"note: {note}")
    if evaluation_alone:
        count = _to_evaluate(len(specs))
    elif trials.probes:
        log(f"each [{need}]; checked at the ends of the domains: {pluralize(len(trials.probes), 'setting')}")
        drawn = f" ({len(trials.specs)} are drawn, of which {len(specs)} are to run)" if trials.specs else ""
        count = f"at most {pluralize(trials.total, 'trial')}{drawn}"
    else:
        of = trials.total
        count = f"{len(specs)} of {of} trials" if len(specs) < of else pluralize(of, "trial")
    log(f"{count}{together}, into {location}; nothing was started")


def _to_evaluate(number: int) -> str:
    return f"{pluralize(number, 'finished trial')} to evaluate again"


def busy(text: str, *, quiet: bool) -> AbstractContextManager[object]:
    """A moving line on a terminal while something takes its time."""
    return nullcontext() if quiet else _Screen(stderr=True).status(text)


def warn(text: str) -> None:
    """A line on stderr about something that takes its time."""
    _Screen(stderr=True, highlight=False).print(escape(text), soft_wrap=True)


def error(text: str) -> None:
    """The one line on stderr that every error ends in."""
    _Screen(stderr=True, highlight=False).print(escape(f"error: {' '.join(text.split())}"), soft_wrap=True)


def _last_row(store: Store, trial_id: str) -> Row | None:
    try:
        lines = store.read_bytes(f"{trial_folder(trial_id)}/{METRICS_FILE}").splitlines()
    except OSError:
        return None
    return row_of(lines[-1]) if lines else None


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.2e}"


def _interval(found: Estimate | None) -> str:
    """``0.5984 [0.506, 0.691]``: a mean and its 95 % interval, which one seed does not have."""
    if found is None:
        return "-"
    if found.ci_low is None:
        return _number(found.mean)
    if abs(found.mean) < 0.001:
        return f"{found.mean:.2e} [{found.ci_low:.1e}, {found.ci_high:.1e}]"
    return f"{found.mean:.4f} [{found.ci_low:.3f}, {found.ci_high:.3f}]"
