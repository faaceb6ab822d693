"""The main job, in order: check everything that can be checked, write ``study.json``, run what is missing, report."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError, MbclError
from mbcl.orchestration import console as consoles
from mbcl.orchestration import results
from mbcl.orchestration.console import Console
from mbcl.orchestration.jobs import Job
from mbcl.orchestration.resources import Need, Node, concurrent_trials, resolve, this_machine
from mbcl.orchestration.space import SpaceFile, check_name, experiment_of, read_space
from mbcl.orchestration.trials import Trials, TrialSpec, expand
from mbcl.storage import LocalStore, Store, open_store
from mbcl.study import StudyRecord, write_study

EXIT_FINISHED, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

WriteReport = Callable[[Store, StudyRecord], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see ``run_ray.py --help``."""

    space: Path
    name: str | None = None
    results_dir: str = "results"
    overrides: tuple[str, ...] = ()
    resume: bool = False
    eval_only: bool = False
    dry_run: bool = False
    address: str | None = None
    quiet: bool = False
    verbose: bool = False

    @property
    def folder(self) -> str:
        """The results folder's name."""
        return self.name or self.space.stem

    def resuming(self) -> str:
        """The command that goes on where this one stops."""
        words = ["python", "run_ray.py", "--space", str(self.space)]
        words += ["--name", self.name] if self.name else []
        words += ["--results-dir", self.results_dir] if self.results_dir != "results" else []
        words += [word for override in self.overrides for word in ("--set", override)]
        words += ["--address", self.address] if self.address else []
        return shlex.join([*words, "--eval-only" if self.eval_only else "--resume"])


def run(request: Request, write_report: WriteReport) -> int:
    """Run a study to its end.

    Args:
        request: what is asked for.
        write_report: writes tables, figures and page from a results folder.

    Returns:
        The exit code of the contract: 0, 1, 2 or 130.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(request, write_report)
    except ConfigError as error:
        consoles.error(str(error))
        return EXIT_BAD_INPUT
    except MbclError as error:
        consoles.error(str(error))
        return EXIT_FAILED
    except OSError as error:
        consoles.error(f"{error.filename or request.results_dir}: {error.strerror or error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        consoles.error("interrupted before anything was started; the same command starts it")
        return EXIT_INTERRUPTED


def _interrupt(number: int, frame: Any) -> None:
    """SIGTERM is SIGINT."""
    raise KeyboardInterrupt


def _run(request: Request, write_report: WriteReport) -> int:
    if request.resume and request.eval_only:
        raise ConfigError("--resume and --eval-only: choose one; --resume evaluates what it runs")
    logging.basicConfig(level=logging.INFO if request.verbose else logging.WARNING, format="%(message)s")
    file = read_space(request.space, list(request.overrides))
    trials = expand(file)
    check_name(request.folder, "--name" if request.name else "the space file's stem (give --name)")
    nodes = this_machine()
    fit: tuple[Need, int] | None = None
    if request.address is None:
        need = resolve(file.space.resources, nodes)
        fit = need, concurrent_trials(need, nodes, file.space.resources)
    store = _open(request)
    if request.dry_run:
        consoles.dry_run(trials, fit, store.uri)
        return EXIT_FINISHED
    if not (request.resume or request.eval_only):
        results.check_new(store, request.folder)
    if request.address is None:
        check_data([spec.experiment.model_dump(mode="json") for spec in distinct(trials)], str(file.path))
    with results.lock(store):
        return _study(request, file, trials, store, nodes, write_report)


def _open(request: Request) -> Store:
    return open_store(request.results_dir).child(request.folder)


def distinct(trials: Trials) -> list[TrialSpec]:
    """One trial of every setting: seeds change neither the data's size nor what fits them."""
    return list({spec.setting: spec for spec in reversed(trials.specs)}.values())[::-1]


def check_data(experiments: Sequence[dict[str, Any]], source: str) -> None:
    """Load every data set once and check everything that only the data can tell.

    Raises:
        ConfigError: if data are missing, or an experiment does not fit them.
    """
    from mbcl.engine import SplitData, facts_of, load_data

    loaded: tuple[Any, SplitData] | None = None
    for content in experiments:
        experiment = experiment_of(content, source)
        if loaded is None or loaded[0] != experiment.data:
            try:
                loaded = experiment.data, load_data(experiment.data, seed=experiment.seed)
            except ConfigError as error:
                raise ConfigError(f"{source}: experiment.data: {error}") from error
        try:
            facts_of(experiment, loaded[1])
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error


def _study(
    request: Request, file: SpaceFile, trials: Trials, store: Store, nodes: list[Node], write_report: WriteReport
) -> int:
    if request.eval_only:
        from mbcl.orchestration.evaluations import reopen_for_evaluation

        study, todo = reopen_for_evaluation(store, trials)
    elif request.resume:
        study = results.reopen(store, file, trials)
        todo = {key: trials.by_id[key] for key in study.unfinished()}
    else:
        study = results.new_study(file, trials, request.name or file.space.name or request.folder)
        results.begin(store, file, trials, study)
        todo = trials.by_id
    console = Console(trials, store, study, quiet=request.quiet)
    interrupted = False
    failures: dict[str, str] = {}
    if todo:
        try:
            failures = _run_missing(request, file, trials, store, study, todo, nodes, console)
        except KeyboardInterrupt:
            interrupted = True
        except ConfigError:
            # A cluster that refuses the space before the first trial leaves nothing behind that a second try meets.
            if not (request.resume or request.eval_only):
                results.withdraw(store)
            raise
    # From here on a second signal would only lose the report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for record in study.trials.values():
        if record.status == "running":
            record.status = "pending"
    write_study(store, study)
    store.delete(results.SCRATCH)
    write_report(store, study)
    console.table()
    console.conclude(f"report: {store.uri}/report.html")
    if interrupted:
        left = len(study.unfinished())
        consoles.error(f"interrupted, {left} trials are missing; go on with: {request.resuming()}")
        return EXIT_INTERRUPTED
    for trial_id, reason in failures.items():
        consoles.error(f"{trial_id}: evaluation failed: {reason}")
    return EXIT_FAILED if failures or study.unfinished() else EXIT_FINISHED


def _run_missing(
    request: Request,
    file: SpaceFile,
    trials: Trials,
    store: Store,
    study: StudyRecord,
    todo: dict[str, TrialSpec],
    nodes: list[Node],
    console: Console,
) -> dict[str, str]:
    """Start or join Ray and run the trials of ``todo``; in ``--eval-only`` return why evaluations failed."""
    from mbcl.orchestration.cluster import cluster

    with cluster(request.address, nodes, verbose=request.verbose) as found:
        signal.signal(signal.SIGTERM, _interrupt)  # Ray has put its own there
        need = resolve(file.space.resources, found)
        concurrency = concurrent_trials(need, found, file.space.resources)
        if request.address is not None:
            _check_data_there(trials, str(file.path))
        from mbcl.orchestration.runner import run_evaluations, run_trials

        make_job = partial(_job, request=request, store=store, study=study, need=need, nodes=found)
        jobs = {key: make_job(key, spec) for key, spec in todo.items()}
        console.begin(len(todo), need, concurrency)
        with console.progress(len(todo)):
            if request.eval_only:
                settings = {key: spec.experiment.evaluation.model_dump(mode="json") for key, spec in todo.items()}
                return run_evaluations(
                    jobs, settings, store=store, study=study, concurrency=concurrency, watcher=console
                )
            run_trials(
                jobs, store=store, scratch=_scratch(store), study=study, concurrency=concurrency, watcher=console
            )
    return {}


def _scratch(store: Store) -> str:
    """Ray's own files: a folder in the results folder that goes when the sweep ends."""
    return (
        str(store.local_folder(results.SCRATCH)) if isinstance(store, LocalStore) else f"{store.uri}/{results.SCRATCH}"
    )


def _job(
    trial_id: str,
    spec: TrialSpec,
    *,
    request: Request,
    store: Store,
    study: StudyRecord,
    need: Need,
    nodes: list[Node],
) -> Job:
    return Job(
        trial_id=trial_id,
        experiment=spec.experiment.model_dump(mode="json"),
        store=store.child(results.trial_folder(trial_id)).uri,
        scratch=_scratch(store),
        need=need,
        group=study.name,
        num_tasks=max(1, int(sum(node.cpus for node in nodes))),
        verbose=request.verbose,
    )


def _check_data_there(trials: Trials, source: str) -> None:
    """Check the data where they will be read: as a first task on a node that trains."""
    import ray

    experiments = [spec.experiment.model_dump(mode="json") for spec in distinct(trials)]
    try:
        ray.get(ray.remote(num_cpus=1)(check_data).remote(experiments, source))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MbclError):
            raise ConfigError(str(cause)) from error
        raise
