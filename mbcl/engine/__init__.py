"""Training: the same trainer in one process, under torchrun and under Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.plan_service import LocalPlanService, make_plan, share_plan
from mbcl.engine.planning_costs import planning_cost
from mbcl.engine.protocols import Observer, PlanKey, PlannedBatches, PlanService, Row
from mbcl.engine.setup import Facts, SplitData, check_model, facts_of, load_data
from mbcl.engine.tracking import build_trackers, check_trackers
from mbcl.engine.trainer import Outcome, Trainer
from mbcl.io.store import Store

__all__ = [
    "Facts",
    "LocalPlanService",
    "Observer",
    "Outcome",
    "PlanKey",
    "PlanService",
    "PlannedBatches",
    "Row",
    "SplitData",
    "Trainer",
    "check_evaluation",
    "check_model",
    "check_trackers",
    "facts_of",
    "load_data",
    "make_plan",
    "planning_cost",
    "share_plan",
    "train",
]


def train(
    experiment: Experiment,
    *,
    world: World,
    store: Store,
    plans: PlanService | None = None,
    observers: Sequence[Observer] = (),
    run_id: str = "",
    group: str = "",
    say: Callable[[str], None] | None = None,
    notice: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one experiment to its end, from its last good checkpoint if it has one.

    Args:
        experiment: the configuration.
        world: this rank and the number of ranks.
        store: the trial's folder; configuration, metrics, checkpoints and tracker files go there.
        plans: who plans; in this process if None.
        observers: told about every step and epoch, besides the trackers that the experiment names.
        run_id: what trackers call this run; one that goes on keeps the name that it began with.
        group: the study that it belongs to.
        say: is told in a line what planning will cost, where it costs anything.
        notice: whether this rank's machine is about to go and no checkpoint was written since; see :class:`Trainer`.

    Raises:
        ConfigError: if configuration and data do not fit.
        CheckpointError: if the folder's checkpoint belongs to another experiment.
        TrainingError: if the loss is not finite.
    """
    trainer = Trainer(
        experiment, world=world, store=store, plans=plans, observers=observers, run_id=run_id, notice=notice
    )
    trainer.resume()
    cost = planning_cost(experiment, trainer.facts.num_train)
    if say is not None and cost:
        say(cost)
    trackers = build_trackers(experiment, store, run_id=trainer.run_id, group=group) if world.rank == 0 else []
    trainer.observers = [*observers, *trackers]
    return trainer.run()
