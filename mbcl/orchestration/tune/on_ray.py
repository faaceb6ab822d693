"""A study on Ray: start or join it, share its resources out, then run the trials or evaluate them again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from ray.exceptions import RayError
from ray.tune import TuneError

from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment
from mbcl.evaluation import BASELINES
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node, TrialResources, max_concurrency
from mbcl.orchestration.cluster.connection import ClusterInfo, await_node, cluster
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.results_folder.reevaluation import commit, evaluation_blocks
from mbcl.orchestration.scheduling.early_stopping import build_early_stopping
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.search_space.schedulers import build as build_scheduler
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.orchestration.trial.job import Job, describe_error
from mbcl.orchestration.trial.preflight import (
    PreflightReport,
    check_data_on_cluster,
    check_shared,
    distinct_experiments,
)
from mbcl.orchestration.trial.pretraining import reevaluation_store
from mbcl.orchestration.trial.trial_runners import runner_of
from mbcl.orchestration.tune.run_trials import run_evaluations, run_trials
from mbcl.orchestration.tune.study_run import RayLostError, StudyRun
from mbcl.study.record import TrialRecord

REHEARSAL_VARIABLE = "MBCL_REHEARSAL"
"""The environment variable that lets trials reserve GPUs, which nodes only claim to have, and compute on CPUs."""


def run_on_ray(run: StudyRun, nodes: list[Node], preflight: PreflightReport | None) -> dict[str, str]:
    """Start or join Ray and run the trials, or evaluate them again.

    Args:
        run: the run.
        nodes: this machine, for a local Ray.
        preflight: what the data say about the settings; None if only the cluster can read them.

    Returns:
        With ``--eval-only`` the reasons of failed evaluations, by trial; otherwise empty.

    Raises:
        RayLostError: if Ray was lost.
        ConfigError: if the cluster cannot run the trials.
        OSError: if the results folder cannot be written.
    """
    try:
        return _run_connected(run, nodes, preflight)
    except (RayError, TuneError) as error:  # before OSError, which some of Ray's errors are, too
        raise RayLostError(describe_error(error)) from error
    except ConnectionError as error:
        if error.filename is not None:  # of a store
            raise
        raise RayLostError(describe_error(error)) from error


def _run_connected(run: StudyRun, nodes: list[Node], preflight: PreflightReport | None) -> dict[str, str]:
    options, space, study, console = run.options, run.file.space, run.study, run.console
    runner = runner_of(space.kind.model)
    with cluster(options.address, nodes, verbose=options.verbose, log=console.log) as ray_cluster:
        sizes = study.trials.numbers_of_workers(space)
        resources = runner.trial_resources(space.resources, ray_cluster.nodes, drivers=ray_cluster.drivers, sizes=sizes)
        concurrency = max_concurrency(resources, ray_cluster.nodes, space.resources, drivers=ray_cluster.drivers)
        if options.address is not None:
            # A cluster that grows may consist of its head alone so far, which sees its own disk.
            await_node(ray_cluster.placement.for_task, console.log)
            check_shared(run.store)
        if preflight is None:
            experiments = distinct_experiments([*study.todo.values(), *study.trials.probes])
            preflight = check_data_on_cluster(experiments, str(run.file.path), ray_cluster.placement.for_task)
        cpus_per_trial = int(sum(node.cpus for node in ray_cluster.nodes)) // concurrency.num_trials
        jobs = StudyJobs(run, resources, ray_cluster, preflight, cpus_per_trial)
        num_todo = len(study.todo) + run.num_undrawn
        notes = (*study.notes, *preflight.notes)
        console.print_header(num_todo, resources, concurrency, notes, evaluation_alone=options.eval_only)
        study.has_begun = True
        with console.progress(num_todo):
            if options.eval_only:
                return _evaluate_again(run, {key: jobs[key] for key in study.todo}, concurrency.num_trials)
            rule = build_early_stopping(space, study.record, study.specs, run.store)
            queue = TrialQueue(
                study.record, study.todo, concurrency=concurrency.num_trials, race=rule, source=run.search
            )
            run_trials(
                jobs,
                store=run.store,
                scratch=layout.scratch(run.store),
                study=study.record,
                concurrency=concurrency.num_trials,
                watcher=console,
                course=queue,
                driver=runner.driver_resources(resources, ray_cluster.placement),
            )
    return {}


def _evaluate_again(run: StudyRun, jobs: dict[str, Job], concurrency: int) -> dict[str, str]:
    """Evaluate finished trials; the study takes all new metrics or, if one evaluation failed, none."""
    measured, failures = run_evaluations(jobs, concurrency=concurrency, watcher=run.console)
    if not failures:
        signals.ignore_signals()  # a commit that stops halfway would mix old and new evaluations
        blocks = evaluation_blocks(run.study.record, run.study.trials, run.file.space.kind)
        commit(run.store, run.study.record, jobs, blocks, measured, reevaluation_store)
    return failures


class StudyJobs(Mapping[str, Job]):
    """The jobs of a study by trial, made when they are looked up: an adaptive search draws trials while others run.

    Args:
        run: the run.
        resources: of one trial.
        ray_cluster: where it runs.
        preflight: says how many pools a plan has.
        cpus_per_trial: how many CPUs a trial's planning tasks may use.
    """

    def __init__(
        self,
        run: StudyRun,
        resources: TrialResources,
        ray_cluster: ClusterInfo,
        preflight: PreflightReport,
        cpus_per_trial: int,
    ) -> None:
        self._run = run
        self._resources = resources
        self._cluster = ray_cluster
        self._pools = preflight.pools
        self._cpus = cpus_per_trial

    def __len__(self) -> int:
        return len(self._run.study.specs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.study.specs)

    def __getitem__(self, trial_id: str) -> Job:
        run, space, spec = self._run, self._run.file.space, self._run.study.specs[trial_id]
        record = run.study.record.trials[trial_id]
        # What an adaptive search draws was not checked by itself; it has no more pools than the ends of the domains.
        pools = self._pools.get(spec.setting, max(self._pools.values(), default=0))
        return Job(
            trial_id=trial_id,
            experiment=spec.experiment,
            store=run.store.child(layout.trial_folder(trial_id)).uri,
            baselines=run.store.child(BASELINES).uri,
            scratch=layout.scratch(run.store),
            need=self._resources,
            group=run.study.record.name,
            num_tasks=runner_of(space.kind.model).planning_tasks(spec.experiment, self._resources, self._cpus, pools),
            placement=self._cluster.placement,
            sizes=space.kind.numbers_of_workers(spec.experiment, space.resources, self._resources.workers),
            watched=run.study.record.metric if build_scheduler(space.scheduler).stops else "",
            judged=record.judged,
            evaluation=_evaluation(run, spec.experiment, record),
            fence=run.fence,
            joined=run.options.address is not None,
            verbose=run.options.verbose,
            rehearsal=bool(os.environ.get(REHEARSAL_VARIABLE)),
        )


def _evaluation(run: StudyRun, experiment: AnyExperiment, record: TrialRecord) -> Evaluation | None:
    """What replaces the trained experiment's evaluation block: the space's, or that of an earlier ``--eval-only``."""
    if run.options.eval_only:
        assert isinstance(experiment, Experiment)
        return experiment.evaluation
    return Evaluation.model_validate(record.evaluation) if record.evaluation else None
