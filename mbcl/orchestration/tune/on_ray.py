"""A study on Ray: start or join Ray, allocate its resources, then run the trials or re-evaluate them.

Modules that import Ray are imported after :func:`cluster` has set what Ray reads once, when it is imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mbcl.config.base import validate
from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment
from mbcl.engine.metrics_log import read_rows
from mbcl.errors import MbclError
from mbcl.evaluation import BASELINES
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node, TrialResources, max_concurrency
from mbcl.orchestration.cluster.connection import ClusterInfo, await_node, cluster
from mbcl.orchestration.console import busy
from mbcl.orchestration.live import Devices
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.results_folder.reevaluation import commit, evaluation_blocks
from mbcl.orchestration.scheduling.early_stopping import build_early_stopping
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.search_space.schedulers import build as build_scheduler
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.orchestration.trial.failures import describe_error
from mbcl.orchestration.trial.job import Job
from mbcl.orchestration.trial.preflight import (
    PreflightReport,
    check_data_on_cluster,
    check_shared,
)
from mbcl.orchestration.trial.trial_runners import allocate, runner_of
from mbcl.orchestration.tune.study_run import StudyRun
from mbcl.study.efficiency import sweep_efficiency
from mbcl.study.record import STUDY_FILE, TrialRecord

REHEARSAL_VARIABLE = "MBCL_REHEARSAL"
"""Environment variable: trials reserve GPUs, which the nodes may only claim to have, but compute on CPUs."""


def run_on_ray(run: StudyRun, nodes: list[Node], preflight: PreflightReport | None) -> dict[str, str]:
    """Start or join Ray and run the trials, or re-evaluate them.

    Args:
        run: the run.
        nodes: this machine, for a local Ray.
        preflight: None if only the nodes of the cluster can read the data.

    Returns:
        With ``--eval-only`` the errors of failed evaluations by trial; otherwise empty.

    Raises:
        MbclError: if Ray was lost; the text has the resume command.
        ConfigError: if the cluster cannot run the trials.
        OSError: if the results folder cannot be written.
    """
    try:
        return _run_connected(run, nodes, preflight)
    except Exception as error:
        if _is_loss_of_ray(error):
            resume_command = run.options.resume_command()
            raise MbclError(f"Ray was lost: {describe_error(error)}; go on with: {resume_command}") from error
        raise


def _is_loss_of_ray(error: Exception) -> bool:
    """Whether Ray raised an error itself, or lost its connection; a store's error names a file."""
    from ray.exceptions import RayError
    from ray.tune import TuneError

    return isinstance(error, RayError | TuneError) or (isinstance(error, ConnectionError) and error.filename is None)


def _run_connected(run: StudyRun, nodes: list[Node], preflight: PreflightReport | None) -> dict[str, str]:
    options, space, study, console = run.options, run.file.space, run.study, run.console
    runner = runner_of(space.kind.model)
    with ExitStack() as stack:
        with busy("starting Ray" if options.address is None else "joining Ray", quiet=options.quiet):
            ray_cluster = stack.enter_context(cluster(options.address, nodes, verbose=options.verbose, log=console.log))
        nodes, drivers = ray_cluster.nodes, ray_cluster.drivers
        resources, concurrency = allocate(
            space,
            study.trials,
            nodes,
            drivers=drivers,
            threads=study.record.threads,
            preflight=preflight,
            evaluation_alone=options.eval_only,
        )
        if space.resources.cpus_per_worker == "auto":
            study.record.threads = resources.threads
        most = max_concurrency(resources, nodes, space.resources, drivers=drivers)
        if options.address is not None:
            # An autoscaled cluster may so far consist of its head alone, on which check_shared would find no problem.
            await_node(ray_cluster.placement.for_task, console.log)
            check_shared(run.store)
        if preflight is None:
            preflight = check_data_on_cluster(
                study.experiments_to_check(), str(run.file.path), ray_cluster.placement.for_task
            )
            study.take_data(preflight)
        # The CPUs that trials leave for lack of memory have none for planning tasks, either.
        cpus_per_trial = int(sum(node.cpus for node in nodes)) // most.num_trials
        jobs = StudyJobs(run, resources, ray_cluster, preflight.max_pools, cpus_per_trial)
        # Before any of them runs: one may be impossible on this cluster, or its recorded evaluation be damaged.
        jobs_todo = {key: jobs[key] for key in study.todo}
        num_todo = len(study.todo) + run.num_undrawn
        notes = (*study.notes, *preflight.notes)
        console.print_header(num_todo, resources, concurrency, notes, evaluation_alone=options.eval_only)
        study.has_begun = True
        all_cpus = sum(node.cpus for node in nodes)
        devices = Devices("core", resources.workers * resources.threads, all_cpus, concurrency.num_trials)
        if resources.gpus:
            devices = Devices("GPU", resources.gpus, sum(node.gpus for node in nodes), concurrency.num_trials)
        with console.progress(devices, lambda: run.num_undrawn):
            if options.eval_only:
                return _evaluate_again(run, jobs_todo, concurrency.num_trials)
            from mbcl.orchestration.tune.run_trials import run_trials

            rule = build_early_stopping(space, study.record, study.specs, run.store)
            queue = TrialQueue(
                study.record, study.todo, concurrency=concurrency.num_trials, rule=rule, source=run.search
            )
            with _measure_efficiency(run, nodes, resources):
                run_trials(
                    jobs,
                    store=run.store,
                    scratch=layout.scratch(run.store),
                    study=study.record,
                    concurrency=concurrency.num_trials,
                    observer=console,
                    queue=queue,
                    driver=runner.driver(resources, ray_cluster.placement, joined=options.address is not None),
                )
    return {}


@contextmanager
def _measure_efficiency(run: StudyRun, nodes: Sequence[Node], resources: TrialResources) -> Iterator[None]:
    """Record how the trials that end in the block use the machine; the block may be interrupted."""
    record = run.study.record
    ended_before = record.trials.keys() - run.study.todo.keys()

    def epoch_seconds(trial_id: str) -> float:
        try:
            rows = read_rows(run.store.child(layout.trial_folder(trial_id)))
        except OSError:
            return 0.0
        return sum(float(row.get("time/total") or 0) for row in rows)

    try:
        yield
    finally:
        ended = [key for key, trial in record.trials.items() if trial.seconds and key not in ended_before]
        num_gpus = sum(node.gpus for node in nodes)
        record.efficiency = sweep_efficiency(
            record,
            ended,
            epoch_seconds,
            num_devices=num_gpus if resources.gpus else sum(node.cpus for node in nodes),
            devices_per_trial=resources.gpus or resources.workers * resources.threads,
            device="GPU" if resources.gpus else "core",
            wall=time.monotonic() - run.started_at,
        )


def _evaluate_again(run: StudyRun, jobs: dict[str, Job], concurrency: int) -> dict[str, str]:
    """Evaluate finished trials in a transaction: all new metrics are committed or, if an evaluation failed, none."""
    from mbcl.orchestration.trial.pretraining import reevaluation_store
    from mbcl.orchestration.tune.run_trials import run_evaluations

    metrics, failures = run_evaluations(jobs, store=run.store, concurrency=concurrency, observer=run.console)
    if not failures:
        signals.ignore_signals()  # an interrupted commit would mix old and new evaluations
        blocks = evaluation_blocks(run.study.record, run.study.trials, run.file.space.kind)
        commit(run.store, run.study.record, jobs, blocks, metrics, reevaluation_store)
    return failures


@dataclass(frozen=True, eq=False)
class StudyJobs(Mapping[str, Job]):
    """The jobs of a study by trial, made on lookup, because an adaptive search draws trials while others run.

    Args:
        run: the run.
        resources: the resources of one trial.
        cluster: the cluster that runs the trials.
        max_pools: by setting, the maximum number of pools of a plan.
        cpus: number of CPUs that a trial's planning tasks may use.
    """

    run: StudyRun
    resources: TrialResources
    cluster: ClusterInfo
    max_pools: Mapping[int, int]
    cpus: int

    def __len__(self) -> int:
        return len(self.run.study.specs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.run.study.specs)

    def __getitem__(self, trial_id: str) -> Job:
        run, space, spec = self.run, self.run.file.space, self.run.study.specs[trial_id]
        record = run.study.record.trials[trial_id]
        # The preflight did not check settings that an adaptive search draws later, only the ends of the domains, which
        # bound their number of pools.
        pools = self.max_pools.get(spec.setting, max(self.max_pools.values(), default=0))
        return Job(
            trial_id=trial_id,
            run_id=f"{trial_id}-{run.study.record.id}" if run.study.record.id else "",
            experiment=spec.experiment,
            store=run.store.child(layout.trial_folder(trial_id)).uri,
            baselines=run.store.child(BASELINES).uri,
            scratch=layout.scratch(run.store),
            resources=self.resources,
            group=run.study.record.name,
            num_tasks=runner_of(space.kind.model).planning_tasks(spec.experiment, self.resources, self.cpus, pools),
            placement=self.cluster.placement,
            sizes=space.kind.numbers_of_workers(spec.experiment, space.resources, self.resources.workers),
            watched_metric=run.study.record.metric if build_scheduler(space.scheduler).stops else "",
            judged_epoch=record.judged,
            evaluation=_evaluation(run, spec.experiment, record),
            evaluates=spec.stage != "tuning",
            fence=run.fence,
            joined=run.options.address is not None,
            verbose=run.options.verbose,
            rehearsal=bool(os.environ.get(REHEARSAL_VARIABLE)),
        )


def _evaluation(run: StudyRun, experiment: AnyExperiment, record: TrialRecord) -> Evaluation | None:
    """Return the block that replaces the experiment's own: the space's, or that of an earlier ``--eval-only``."""
    if run.options.eval_only:
        assert isinstance(experiment, Experiment)
        return experiment.evaluation
    return validate(Evaluation, record.evaluation, f"{run.store.uri}/{STUDY_FILE}") if record.evaluation else None
