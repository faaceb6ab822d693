"""The main job, in order: check everything that can be checked, write ``study.json``, run what is missing, report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mbcl.errors import ConfigError, MbclError, pluralize
from mbcl.evaluation import BASELINES
from mbcl.io.ownership import Fence, FencedStore
from mbcl.io.store import Store, check_writable, open_store
from mbcl.orchestration import console as consoles
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Concurrency, Node, TrialResources, max_concurrency, this_machine
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.console import Console
from mbcl.orchestration.results_folder import layout, recovery
from mbcl.orchestration.results_folder.lease import hold
from mbcl.orchestration.results_folder.reevaluation import commit, evaluation_blocks, reopen_for_evaluation
from mbcl.orchestration.scheduling.optuna_search import OptunaSearch, check_installed
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec, expand
from mbcl.orchestration.search_space.schedulers import build as build_scheduler
from mbcl.orchestration.search_space.schema import SpaceFile, check_name, read_space
from mbcl.orchestration.signals import EXIT_INTERRUPTED
from mbcl.orchestration.study_options import StudyOptions
from mbcl.orchestration.trial.job import Job, describe_error
from mbcl.orchestration.trial.preflight import (
    PreflightReport,
    check_data_on_cluster,
    check_shared,
    distinct_experiments,
)
from mbcl.orchestration.trial.trial_runners import runner_of
from mbcl.study.record import StudyRecord

__all__ = ["EXIT_INTERRUPTED", "StudyOptions", "run"]

EXIT_FINISHED, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2

REHEARSAL_VARIABLE = "MBCL_REHEARSAL"
"""The environment variable that lets trials reserve GPUs, which nodes only claim to have, and compute on CPUs."""

WriteReport = Callable[[Store, StudyRecord], None]


def run(request: StudyOptions, write_report: WriteReport) -> int:
    """Run a study to its end.

    Args:
        request: what is asked for.
        write_report: writes tables, figures and page from a results folder.

    Returns:
        The exit code of the contract: 0, 1, 2 or 130.
    """
    signals.install_handlers()
    try:
        return _run(request, write_report)
    except ConfigError as error:
        consoles.error(str(error))
        return EXIT_BAD_INPUT
    except MbclError as error:
        consoles.error(str(error))
        return EXIT_FAILED
    except OSError as error:  # before the study has begun: later ones are told apart by Sweep.run
        consoles.error(f"{error.filename or request.results_dir}: {error.strerror or error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        consoles.error(signals.BEFORE)
        return EXIT_INTERRUPTED


def _run(request: StudyOptions, write_report: WriteReport) -> int:
    if request.resume and request.eval_only:
        raise ConfigError("--resume and --eval-only: choose one; --resume evaluates what it runs")
    logging.basicConfig(level=logging.INFO if request.verbose else logging.WARNING, format="%(message)s")
    file = read_space(request.space, list(request.overrides))
    trials = expand(file)
    check_installed(file.space.search)
    if request.address == "":
        raise ConfigError("--address: found an empty text; allowed: auto, or HOST:PORT of a cluster's head")
    check_name(request.folder, "--name" if request.name is not None else "the space file's stem (give --name)")
    nodes = this_machine()
    runner = runner_of(file.space.kind)
    here: tuple[TrialResources, Concurrency] | None = None
    if request.address is None:
        need = runner.trial_resources(file.space.resources, nodes, sizes=trials.numbers_of_workers(file.space))
        here = need, max_concurrency(need, nodes, file.space.resources)
    store = open_store(request.results_dir).child(request.folder)
    check_writable(store, "--results-dir")
    # A first look, before data are read and anything is written; the one that counts is taken under the lock.
    opened = _open(request, file, trials, store)
    todo, trials = opened.todo, opened.trials
    checked: PreflightReport | None = None
    if request.address is None or not file.space.kind.reads_data:
        with consoles.busy("reading data, building models", quiet=request.quiet):
            checked = runner.check(distinct_experiments([*todo.values(), *trials.probes]), str(file.path))
    if request.dry_run:
        consoles.dry_run(
            list(todo.values()), trials, file.space, here, store.uri, checked, evaluation_alone=request.eval_only
        )
        return EXIT_FINISHED
    if request.address is not None and (todo or trials.probes):
        from mbcl.orchestration.cluster.connection import check_address

        check_address(request.address)  # before there is a results folder
    with hold(store, consoles.warn) as fence:
        opened = _open(request, file, trials, store)
        return Sweep(request, file, store, fence, opened, nodes, checked).run(write_report)


@dataclass
class OpenedStudy:
    """A study, new or found.

    Args:
        study: its record.
        trials: all of its trials.
        todo: those to run, by their stored names.
        notes: what a person should know about it.
    """

    study: StudyRecord
    trials: Trials
    todo: dict[str, TrialSpec]
    notes: list[str] = field(default_factory=list)


def _open(request: StudyOptions, file: SpaceFile, trials: Trials, store: Store) -> OpenedStudy:
    """The study that is asked for. Writes nothing."""
    title = request.name or file.space.name or request.folder
    if request.eval_only:
        file.space.kind.evaluation((*trials.specs, *trials.probes)[0].experiment)
        study, todo, trials, notes = reopen_for_evaluation(store, file, trials)
        return OpenedStudy(study, trials, todo, notes)
    if request.resume:
        study, trials, notes = recovery.recover(store, file, trials, title)
        return OpenedStudy(study, trials, {key: trials.by_id[key] for key in study.unfinished()}, notes)
    layout.check_new(store, request.folder)
    return OpenedStudy(layout.new_study(file, trials, title), trials, trials.by_id)


class Sweep:
    """One run of a study whose folder is locked: what is missing, then the report.

    Args:
        request: what is asked for.
        file: the space.
        store: the results folder.
        fence: the claim on it that all processes of this sweep write under.
        opened: the study; its record changes as trials end.
        nodes: this machine.
        checked: what the data say; None where only the cluster can read them.
    """

    def __init__(
        self,
        request: StudyOptions,
        file: SpaceFile,
        store: Store,
        fence: Fence,
        opened: OpenedStudy,
        nodes: list[Node],
        checked: PreflightReport | None,
    ) -> None:
        self._request = request
        self._file = file
        self._store = FencedStore(store, [fence])
        self._fence = fence
        self._study, self._trials, self._todo, self._notes = opened.study, opened.trials, opened.todo, opened.notes
        self._nodes = nodes
        self._checked = checked
        self._console = Console(self._trials, file.space, self._store, self._study, quiet=request.quiet)
        self._specs = self._trials.by_id
        self._jobs: dict[str, Job] = {}
        self._make_job: Callable[[str, TrialSpec], Job] | None = None
        self._proposals: OptunaSearch | None = None
        if file.space.search.adaptive and not request.eval_only:
            self._proposals = OptunaSearch(
                file, self._study, self._trials.total, added=self._add, log=self._console.log
            )
        self._begun = False

    @property
    def _is_new(self) -> bool:
        return not (self._request.resume or self._request.eval_only)

    @property
    def _undrawn(self) -> int:
        """How many trials an adaptive search may still draw."""
        return self._proposals.left if self._proposals else 0

    def _add(self, specs: Sequence[TrialSpec]) -> None:
        """Take in trials that a search has drawn."""
        assert self._make_job is not None
        self._specs |= {spec.trial_id: spec for spec in specs}
        self._jobs |= {spec.trial_id: self._make_job(spec.trial_id, spec) for spec in specs}
        self._console.add(specs)

    def run(self, write_report: WriteReport) -> int:
        """Run to the end; returns the exit code.

        Raises:
            ConfigError: if a new study cannot begin.
            MbclError: if the results folder cannot be written any more, or Ray was lost; what was finished before is
                kept.
        """
        go_on = self._request.resume_command()
        try:
            return self._run(write_report)
        except Exception as error:
            if _is_of_ray(error):
                raise MbclError(f"Ray was lost: {describe_error(error)}; go on with: {go_on}") from error
            if not isinstance(error, OSError):
                raise  # a bug stays a traceback
            where = f"{error.filename or self._store.uri}: {error.strerror or error}"
            if self._is_new and not self._begun:
                raise ConfigError(where) from error
            raise MbclError(f"{where}; what is finished is kept, when that is mended go on with: {go_on}") from error

    def _run(self, write_report: WriteReport) -> int:
        interrupted = False
        failures: dict[str, str] = {}
        try:
            with signals.defer():
                self._begin()
            self._check_resumed()
            if self._todo or self._undrawn:
                failures = self._with_ray()
        except KeyboardInterrupt:
            interrupted = True
        except (ConfigError, OSError) as error:
            # What fails before the first trial leaves nothing behind that a second try meets.
            if self._is_new and not self._begun and not _is_of_ray(error):
                with suppress(OSError):
                    layout.roll_back(self._store)
            raise
        signals.ignore_signals()  # a second signal would only lose the report
        layout.finalize(self._store, self._study)
        write_report(self._store, self._study)
        self._console.print_table()
        self._console.print_summary(f"report: {self._store.uri}/report.html")
        return self._exit_code(interrupted, failures)

    def _begin(self) -> None:
        """Put the results folder in order, and write what a new study begins with."""
        layout.remove_scratch(self._store)
        recovery.remove_temporaries(self._store)
        if self._is_new:
            layout.create(self._store, self._file, self._trials, self._study)
        elif self._request.resume:
            recovery.keep_damaged(self._store)

    def _check_resumed(self) -> None:
        """Note what a person should know of what goes on; checkpoints are read as a whole, which may take minutes."""
        if self._request.resume and self._file.space.kind.reads_data:
            there = set(self._store.list(layout.TRIALS))
            begun = [key for key in self._todo if key in there]
            if begun:
                self._console.log(f"verifying the checkpoints of {pluralize(len(begun), 'trial')}")
            self._notes += recovery.notes_of_trials(self._store, begun)
            kind = self._file.space.kind
            going = self._specs if self._undrawn else self._todo  # what will be drawn is evaluated as all that is there
            asked = {key: kind.evaluation(spec.experiment) for key, spec in going.items()}
            self._notes += recovery.notes_of(self._study, asked)

    def _exit_code(self, interrupted: bool, failures: dict[str, str]) -> int:
        request, left = self._request, len(self._study.unfinished()) + self._undrawn
        for trial_id, reason in failures.items():
            consoles.error(f"{trial_id}: evaluation failed: {reason}")
        if interrupted and request.eval_only:
            consoles.error(
                f"interrupted; the study keeps its earlier evaluation; again with: {request.resume_command()}"
            )
        elif interrupted:
            missing = f", {pluralize(left, 'trial')} {'is' if left == 1 else 'are'} missing; go on with: "
            consoles.error(
                f"interrupted{missing}{request.resume_command()}" if left else "interrupted; no trial is missing"
            )
        elif failures:
            consoles.error(f"{len(failures)} of {len(self._todo)} evaluations failed; the study keeps its earlier one")
        if interrupted:
            return EXIT_INTERRUPTED
        return EXIT_FAILED if failures or left else EXIT_FINISHED

    def _with_ray(self) -> dict[str, str]:
        """Start or join Ray and run the trials; in ``--eval-only`` return why evaluations failed."""
        from mbcl.orchestration.cluster.connection import await_node, cluster

        request, file, console = self._request, self._file, self._console
        runner = runner_of(file.space.kind)
        with cluster(request.address, self._nodes, verbose=request.verbose, log=console.log) as found:
            sizes = self._trials.numbers_of_workers(file.space)
            need = runner.trial_resources(file.space.resources, found.nodes, drivers=found.drivers, sizes=sizes)
            fitting = max_concurrency(need, found.nodes, file.space.resources, drivers=found.drivers)
            concurrency = fitting.num_trials
            if request.address is not None:
                # Of a cluster that grows the head may be alone so far, which sees its own disk.
                await_node(found.placement.for_task, console.log)
                check_shared(self._store)
            checked = self._checked
            if checked is None:
                experiments = distinct_experiments([*self._todo.values(), *self._trials.probes])
                checked = check_data_on_cluster(experiments, str(file.path), found.placement.for_task)
            from mbcl.orchestration.scheduling.early_stopping import build_early_stopping
            from mbcl.orchestration.tune.run_trials import run_trials

            cpus = int(sum(node.cpus for node in found.nodes)) // concurrency
            most_pools = max(checked.pools.values(), default=0)

            def make(key: str, spec: TrialSpec) -> Job:
                pools = checked.pools.get(spec.setting, most_pools)
                num_tasks = runner.planning_tasks(spec.experiment, need, cpus, pools)
                return self._job(key, spec, need, num_tasks, found.placement)

            self._make_job = make
            jobs = self._jobs
            jobs |= {key: make(key, spec) for key, spec in self._todo.items()}
            num_todo = len(jobs) + self._undrawn
            notes = (*self._notes, *checked.notes)
            console.print_header(num_todo, need, fitting, notes, evaluation_alone=request.eval_only)
            self._begun = True
            with console.progress(num_todo):
                if request.eval_only:
                    return self._evaluate(jobs, concurrency)
                rule = build_early_stopping(file.space, self._study, self._specs, self._store)
                run_trials(
                    jobs,
                    store=self._store,
                    scratch=layout.scratch(self._store),
                    study=self._study,
                    concurrency=concurrency,
                    watcher=console,
                    course=TrialQueue(
                        self._study, list(jobs), concurrency=concurrency, race=rule, source=self._proposals
                    ),
                    driver=runner.driver_resources(need, found.placement),
                )
        return {}

    def _evaluate(self, jobs: dict[str, Job], concurrency: int) -> dict[str, str]:
        """Evaluate again; all new metrics become the study's together, or none of them."""
        from mbcl.orchestration.trial.pretraining import reevaluation_store
        from mbcl.orchestration.tune.run_trials import run_evaluations

        measured, failures = run_evaluations(jobs, concurrency=concurrency, watcher=self._console)
        if not failures:
            signals.ignore_signals()  # half of it would be neither the old study nor the new one
            settings = evaluation_blocks(self._study, self._trials, self._file.space.kind)
            commit(self._store, self._study, jobs, settings, measured, reevaluation_store)
        return failures

    def _job(self, trial_id: str, spec: TrialSpec, need: TrialResources, num_tasks: int, placement: Placement) -> Job:
        evaluation = self._study.trials[trial_id].evaluation
        if self._request.eval_only:
            evaluation = self._file.space.kind.evaluation(spec.experiment)
        return Job(
            trial_id=trial_id,
            experiment=spec.experiment.model_dump(mode="json"),
            store=self._store.child(layout.trial_folder(trial_id)).uri,
            baselines=self._store.child(BASELINES).uri,
            scratch=layout.scratch(self._store),
            need=need,
            group=self._study.name,
            num_tasks=num_tasks,
            placement=placement,
            sizes=self._file.space.kind.numbers_of_workers(spec.experiment, self._file.space.resources, need.workers),
            watched=self._study.metric if build_scheduler(self._file.space.scheduler).stops else "",
            judged=self._study.trials[trial_id].judged,
            evaluation=evaluation,
            fence=self._fence,
            joined=self._request.address is not None,
            verbose=self._request.verbose,
            rehearsal=bool(os.environ.get(REHEARSAL_VARIABLE)),
        )


def _is_of_ray(error: Exception) -> bool:
    """Whether an error is the loss of Ray: one of its own, or of a connection; what a store raises has a file or text.

    Ray's errors come first: some are an OSError, too, such as that of a wait that has taken too long.
    """
    return type(error).__module__.startswith("ray.") or (isinstance(error, ConnectionError) and error.filename is None)
