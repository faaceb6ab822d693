"""The console output of a study: a progress display, a line per finished trial, a final table.

While a study runs, only this module prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console as RichConsole
from rich.markup import escape

from mbcl.console.study_table import PLAIN_WIDTH, below_table, ending_of, study_table
from mbcl.errors import pluralize
from mbcl.io.store import Store
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Concurrency, TrialResources
from mbcl.orchestration.live import Devices, LiveDisplay, number
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.search_space.describe import counts, domain_lines, plan_lines, power_lines
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.schema import Space
from mbcl.orchestration.trial.preflight import PreflightReport
from mbcl.orchestration.watch import Watch
from mbcl.study.statistics import summarise


class _PipeSafeConsole(RichConsole):
    """A console that discards its output once stdout is closed, as by ``| head``."""

    def on_broken_pipe(self) -> None:
        """Redirect the output to the null device and return; Rich would exit the process."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())
        os.close(null)


class _StudyConsole(_PipeSafeConsole):
    """The console of a study, which a closed stdout interrupts."""

    def on_broken_pipe(self) -> None:
        """Discard further output and interrupt the study: finished trials are kept, and it can be resumed."""
        super().on_broken_pipe()
        signals.interrupt()


class Console:
    """A :class:`~mbcl.orchestration.tune.run_trials.TrialObserver` that prints; if quiet, only table and summary."""

    def __init__(
        self, space: Space, store: Store, opened: OpenedStudy, *, quiet: bool, watch: Watch | None = None
    ) -> None:
        self._space = space
        self._store = store
        self._opened = opened
        self._study = opened.record
        self._labels: dict[int, str] = {}
        self._quiet = quiet
        self._screen = _StudyConsole(highlight=False)
        if not self._screen.is_terminal:
            self._screen.width = PLAIN_WIDTH
        self._live: LiveDisplay | None = None
        self._watch = watch

    def log(self, text: str) -> None:
        """Print a line unless quiet."""
        if not self._quiet:
            self._screen.print(escape(text), soft_wrap=True)

    def print_summary(self, text: str) -> None:
        """Print a line of the summary, also when quiet."""
        self._screen.print(escape(text), soft_wrap=True)

    def print_header(
        self,
        num_todo: int,
        resources: TrialResources,
        concurrency: Concurrency,
        notes: Sequence[str],
        *,
        evaluation_alone: bool = False,
    ) -> None:
        """Print the study's question, the number of trials, their resources, the plan of the space, and the notes."""
        total = self._opened.trials.total
        self.log(f"{self._study.name}: {self._study.question}" if self._study.question else self._study.name)
        prefix = "at most " if self._opened.trials.probes else ""
        done = f", {total - num_todo} of them done" if num_todo < total else ""
        number, _, parts = counts(self._space, self._opened.trials).partition(": ")
        size = _to_evaluate(num_todo) if evaluation_alone else f"{prefix}{number}{done}: {parts}"
        self.log(f"{size}; {concurrency}, each {resources.describe()}")
        for line in () if evaluation_alone else plan_lines(self._space):
            self.log(line)
        for note in (*self._opened.trials.notes, *notes):
            self.log(f"note: {note}")

    @contextmanager
    def progress(self, devices: Devices, undrawn: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Show the state of the study during the block, unless quiet; ``undrawn`` returns the trials to be drawn."""
        if self._quiet:
            yield
            return
        self._live = LiveDisplay(
            self._screen,
            self._study,
            self._store,
            devices,
            num_epochs=lambda trial_id: self._space.kind.num_epochs(self._opened.specs[trial_id].experiment),
            label=self._label,
            undrawn=undrawn,
        )
        with self._live.shown():
            try:
                yield
            finally:
                self._live = None

    def on_trial_start(self, trial_id: str) -> None:
        """Show the trial."""
        if self._live is not None:
            self._live.start(trial_id)

    def poll(self, trial_ids: Sequence[str]) -> None:
        """Show the last rows of metrics of running trials, and write the report if that is due."""
        if self._live is not None:
            self._live.poll()
        if self._watch is not None:
            self._watch.poll()

    def on_waiting(self, number: int) -> None:
        """Print how many trials wait for resources."""
        trials = f"{number} trial{'s wait' if number > 1 else ' waits'}"
        self.log(f"waiting: {trials} for room on the cluster, which others use or whose nodes are yet to come")

    def on_trial_end(self, trial_id: str) -> None:
        """Print a line about the result of a trial."""
        record = self._study.trials[trial_id]
        label = self._label(trial_id)
        if record.status == "failed":
            self.log(f"{ending_of(self._study, record)}  {label}  {record.error}")
        elif record.stopped:
            self.log(f"stopped   {label}  {record.stopped.describe()}")
        else:
            metric = self._study.metric
            seconds = record.seconds.get("total")
            duration = "" if seconds is None else f"  {seconds:.1f} s"
            self.log(f"finished  {label}  {metric} {number(record.metrics.get(metric))}{duration}")
        if self._live is not None:
            self._live.end(trial_id)

    def on_evaluation_end(self, trial_id: str, error: str) -> None:
        """Print a line about the result of a re-evaluation."""
        self.log(f"FAILED    {self._label(trial_id)}  {error}" if error else f"evaluated {self._label(trial_id)}")
        if self._live is not None:
            self._live.end(trial_id)

    def _label(self, trial_id: str) -> str:
        """Return the trial's name, the label of its setting, and its seed."""
        record = self._study.trials[trial_id]
        if record.setting not in self._labels:
            self._labels = {setting.setting: setting.label for setting in summarise(self._study)}
        return f"{trial_id}  {self._labels[record.setting]}, seed {record.seed}"

    def print_table(self) -> None:
        """Print the final table: a row per setting, with means over its finished seeds, and the failed trials."""
        self._screen.print(study_table(self._study))
        for line in below_table(self._study):
            self.print_summary(line)


def dry_run(
    study: OpenedStudy,
    space: Space,
    allocation: tuple[TrialResources, Concurrency] | None,
    location: str,
    preflight: PreflightReport | None,
    missing: Sequence[str] = (),
    *,
    evaluation_alone: bool = False,
) -> None:
    """List every trial that would run, with its parameters and the cost of planning, and the resources of each.

    Args:
        study: the study, of which an adaptive search may draw further trials.
        space: the space.
        allocation: the resources of one trial and how many run at a time; None if they depend on the cluster.
        location: the results folder.
        preflight: the result of the checks; None if only the nodes of the cluster can read the data.
        missing: what this machine lacks, one line each.
        evaluation_alone: whether the trials would only be evaluated.
    """
    screen = _PipeSafeConsole(highlight=False)
    specs, trials = study.todo.values(), study.trials

    def log(text: str) -> None:
        screen.print(escape(text), soft_wrap=True)

    unknown = "the resources that are there" if missing else "what the cluster gives"
    resources, concurrency = unknown, ""
    if allocation is not None:
        resources, concurrency = allocation[0].describe(), f", {allocation[1]}"
    for line in () if evaluation_alone else (*domain_lines(space), *plan_lines(space)):
        log(line)
    for line in () if evaluation_alone else power_lines(space, study.record):
        log(f"seeds: {line}")
    for spec in specs:
        parameters = ", ".join(f"{key} = {short(value)}" for key, value in (spec.parameters | spec.nuisance).items())
        cost = preflight.planning_cost.get(spec.setting) if preflight else None
        log(f"{spec.trial_id}  seed {spec.seed}  {parameters}" + (f"  {cost}" if cost else ""))
    unchecked = () if missing else ("the data are checked on the cluster",)
    for note in (*trials.notes, *(preflight.notes if preflight else unchecked)):
        log(f"note: {note}")
    if evaluation_alone:
        count = _to_evaluate(len(specs))
    elif trials.probes:
        log(f"checked at the ends of the domains: {pluralize(len(trials.probes), 'setting')}")
        drawn = f" ({len(trials.specs)} are drawn, of which {len(specs)} are to run)" if trials.specs else ""
        count = f"at most {pluralize(trials.total, 'trial')}{drawn}"
    elif space.nuisance is not None:
        count = f"{counts(space, trials)}; {len(specs)} are listed"
    else:
        total = trials.total
        count = f"{len(specs)} of {total} trials" if len(specs) < total else pluralize(total, "trial")
    log(f"{count}{concurrency}, each {resources}, into {location}; nothing was started")
    for text in dict.fromkeys(missing):
        error(f"missing here: {text}")


def _to_evaluate(number: int) -> str:
    return f"{pluralize(number, 'finished trial')} to evaluate again"


def busy(text: str, *, quiet: bool) -> AbstractContextManager[object]:
    """Say on stderr what the block does: by a spinner on a terminal, elsewhere by a line."""
    screen = _PipeSafeConsole(stderr=True, highlight=False)
    if screen.is_terminal and not quiet:
        return screen.status(text)
    if not quiet:
        screen.print(f"{text} ...")
    return nullcontext()


def warn(text: str) -> None:
    """Print a line to stderr about an operation that takes long."""
    _PipeSafeConsole(stderr=True, highlight=False).print(escape(text), soft_wrap=True)


def error(text: str) -> None:
    """Print an error to stderr in one line."""
    _PipeSafeConsole(stderr=True, highlight=False).print(escape(f"error: {' '.join(text.split())}"), soft_wrap=True)
