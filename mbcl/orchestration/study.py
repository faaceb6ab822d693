"""The main job: check the input, open the results folder, run the missing trials, write the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mbcl.errors import ConfigError, DataError, MbclError, ResourcesError, pluralize
from mbcl.io.ownership import FencedStore
from mbcl.io.store import Store, check_writable, open_store
from mbcl.orchestration import console as consoles
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node
from mbcl.orchestration.cluster.machine import this_machine
from mbcl.orchestration.console import Console
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.results_folder.lease import hold
from mbcl.orchestration.results_folder.opened_study import (
    OpenedStudy,
    check_draws,
    check_exclusive,
    open_study,
    prepare_folder,
    resume_notes,
)
from mbcl.orchestration.scheduling.confirmation_source import ConfirmationSource
from mbcl.orchestration.scheduling.optuna_search import OptunaSearch, check_installed
from mbcl.orchestration.scheduling.trial_queue import SettingSource
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import SpaceFile, check_name, read_space
from mbcl.orchestration.signals import EXIT_INTERRUPTED
from mbcl.orchestration.study_options import StudyOptions
from mbcl.orchestration.trial.preflight import PreflightReport
from mbcl.orchestration.trial.trial_runners import allocate, runner_of
from mbcl.orchestration.tune.study_run import StudyRun
from mbcl.orchestration.watch import Watch
from mbcl.study.nuisance import choices
from mbcl.study.record import StudyRecord

__all__ = ["EXIT_INTERRUPTED", "StudyOptions", "run"]

EXIT_FINISHED, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2

WriteReport = Callable[[Store, StudyRecord], str]


def run(options: StudyOptions, write_report: WriteReport) -> int:
    """Run a study; print every expected error in one line to stderr.

    ``write_report`` writes tables, figures and page into a results folder, and returns the answer in a sentence.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 130 interrupted.
    """
    signals.install_handlers()
    try:
        return run_study(options, write_report)
    except MbclError as error:
        consoles.error(str(error))
        return EXIT_BAD_INPUT if isinstance(error, ConfigError) else EXIT_FAILED
    except OSError as error:  # before the folder is locked; _explained_errors converts later ones
        consoles.error(f"{error.filename or options.results_dir}: {error.strerror or error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        consoles.error(signals.NOT_STARTED)
        return EXIT_INTERRUPTED


def run_study(options: StudyOptions, write_report: WriteReport) -> int:
    """Run a study from the space file to the report and return the exit code.

    Raises:
        ConfigError: if the input is bad; nothing was written, or it was rolled back.
        MbclError: if the results folder became unwritable, or Ray was lost. Finished trials are kept.
        OSError: if the results folder cannot be reached.
        KeyboardInterrupt: before anything has started.
    """
    started_at = time.monotonic()
    check_exclusive(options)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")

    # Read the space, and check what depends only on the file and this machine.
    file = read_space(options.space, list(options.overrides), options.plugins)
    trials = expand(file)
    check_installed(file.space.search)
    check_name(options.folder, "--name" if options.name is not None else "the space file's stem (give --name)")
    nodes = this_machine()
    missing: list[str] = []  # what a dry run goes on without
    if options.address is None:
        with _absent_here(missing, options):
            allocate(file.space, trials, nodes)  # what never fits is refused before the data are read

    # Check the results folder, the data and the models before anything is written.
    store = open_store(options.results_dir).child(options.folder)
    check_writable(store, "--results-dir")
    study = open_study(options, file, trials, store)
    preflight = None
    with _absent_here(missing, options):
        preflight = _preflight(options, file, study)
    if preflight is not None:
        study.take_data(preflight)
    option = "extend" if options.extend else "resume"
    if options.resumes and study.todo:
        check_draws(store, study.record, option)
    if options.dry_run:
        return _dry_run(options, file, study, store, nodes, preflight, missing)
    if options.address is not None and study.checked:
        from mbcl.orchestration.cluster.connection import check_address

        check_address(options.address)

    with hold(store, consoles.warn) as fence:
        # Double-checked: another sweep may have changed the folder before the lock was taken.
        study = open_study(options, file, trials, store)
        if preflight is not None:
            study.take_data(preflight)
        fenced = FencedStore(store, [fence])
        watch = Watch(fenced, study.record, write_report) if options.watch else None
        console = Console(file.space, fenced, study, quiet=options.quiet, watch=watch)
        search: SettingSource | None = None
        if file.space.nuisance is not None and not options.eval_only:
            search = ConfirmationSource(file.space, study.record, study.trials, added=study.add)
        if file.space.search.adaptive and not options.eval_only:
            search = OptunaSearch(file, study.record, study.trials.total, added=study.add, log=console.log)
        if options.resumes and search and search.left:
            check_draws(store, study.record, option)
        if study.is_extended and not study.todo and not (search and search.left):
            study.keep_as_stored(fenced)
            console.log("nothing is to run; the study stays as it is")
        study_run = StudyRun(options, file, study, fenced, fence, console, search, started_at)
        with _explained_errors(study_run):
            interrupted, failures = _run_trials(study_run, nodes, preflight)
            signals.ignore_signals()  # a second signal would lose the report
            if watch is not None:
                watch.close()
            layout.finalize(fenced, study.record)
            answer = write_report(fenced, study.record)
            console.print_table()
            console.print_summary(f"answer: {answer}")
            if study.record.efficiency is not None and not options.eval_only:
                console.log(f"efficiency: {study.record.efficiency.describe()}")
            if not options.temporary:
                console.print_summary(f"report: {store.uri}/report.html")
        return _exit_code(study_run, failures, interrupted=interrupted)


@contextmanager
def _absent_here(missing: list[str], options: StudyOptions) -> Iterator[None]:
    """In a dry run, note what this machine lacks, which another one may have: data, devices, memory.

    Raises:
        ConfigError: if anything else is wrong, or it is no dry run.
    """
    try:
        yield
    except ConfigError as error:
        is_absent = isinstance(error, ResourcesError) or isinstance(error.__cause__, DataError)
        if not options.dry_run or not is_absent:
            raise
        missing.append(str(error))


def _dry_run(
    options: StudyOptions,
    file: SpaceFile,
    study: OpenedStudy,
    store: Store,
    nodes: list[Node],
    preflight: PreflightReport | None,
    missing: list[str],
) -> int:
    """List the trials and what this machine lacks for them; return the exit code."""
    allocation, again = None, options.eval_only
    if options.address is None and not missing:
        with _absent_here(missing, options):
            allocation = allocate(
                file.space,
                study.trials,
                nodes,
                threads=study.record.threads,
                preflight=preflight,
                evaluation_alone=again,
            )
    consoles.dry_run(study, file.space, allocation, store.uri, preflight, missing, evaluation_alone=again)
    return EXIT_BAD_INPUT if missing else EXIT_FINISHED


def _preflight(options: StudyOptions, file: SpaceFile, study: OpenedStudy) -> PreflightReport | None:
    """Check the data and models of every setting; return None if only the nodes of a cluster can read the data.

    Raises:
        ConfigError: if data are missing, or a setting does not fit them.
    """
    if options.address is not None and file.space.kind.reads_data:
        return None
    with consoles.busy("reading data, building models", quiet=options.quiet):
        return runner_of(file.space.kind.model).check(study.experiments_to_check(), str(file.path))


def _run_trials(
    study_run: StudyRun, nodes: list[Node], preflight: PreflightReport | None
) -> tuple[bool, dict[str, str]]:
    """Prepare the folder and run the missing trials. A new study that fails before its first trial is rolled back.

    Returns:
        Whether the run was interrupted, and why evaluations failed, by trial.
    """
    options, file, study = study_run.options, study_run.file, study_run.study
    try:
        with signals.defer():
            prepare_folder(study_run.store, file, study, resume=options.resumes)
        if options.resumes and file.space.kind.reads_data:
            study.notes += resume_notes(
                study_run.store, file, study, draws_more=bool(study_run.num_undrawn), log=study_run.console.log
            )
        if not study.todo and not study_run.num_undrawn:
            return False, {}
        from mbcl.orchestration.tune.on_ray import run_on_ray

        return False, run_on_ray(study_run, nodes, preflight)
    except KeyboardInterrupt:
        return True, {}
    except (ConfigError, OSError):
        if study.is_new and not study.has_begun:  # the same command can be run again
            with suppress(OSError):
                layout.roll_back(study_run.store)
        raise


@contextmanager
def _explained_errors(study_run: StudyRun) -> Iterator[None]:
    """Explain the errors of storage during a run.

    Raises:
        ConfigError: if a new study cannot begin; the same command can be run again.
        MbclError: if the results folder became unwritable; the text has the resume command.
    """
    try:
        yield
    except OSError as error:
        location = f"{error.filename or study_run.store.uri}: {error.strerror or error}"
        if study_run.study.is_new and not study_run.study.has_begun:
            raise ConfigError(location) from error
        resume_command = study_run.options.resume_command()
        message = f"{location}; what is finished is kept, when that is mended go on with: {resume_command}"
        raise MbclError(message) from error


def _exit_code(study_run: StudyRun, failures: dict[str, str], *, interrupted: bool) -> int:
    """Print what is missing or failed, and return the exit code."""
    options, study = study_run.options, study_run.study
    num_missing = len(study.record.unfinished()) + study_run.num_undrawn
    for trial_id, reason in failures.items():
        consoles.error(f"{trial_id}: evaluation failed: {reason}")
    if interrupted and options.eval_only:
        consoles.error(f"interrupted; the study keeps its earlier evaluation; again with: {options.resume_command()}")
    elif interrupted and num_missing:
        missing = f"{pluralize(num_missing, 'trial')} {'is' if num_missing == 1 else 'are'} missing"
        consoles.error(f"interrupted, {missing}; go on with: {options.resume_command()}")
    elif interrupted:
        consoles.error("interrupted; no trial is missing")
    elif failures:
        evaluations = pluralize(len(study.todo), "evaluation")
        consoles.error(f"{len(failures)} of {evaluations} failed; the study keeps its earlier one")
    if interrupted:
        return EXIT_INTERRUPTED
    unchosen = any(choice.chosen is None for choice in choices(study.record))
    return EXIT_FAILED if failures or num_missing or unchosen else EXIT_FINISHED
