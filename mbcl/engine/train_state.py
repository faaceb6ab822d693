"""What a training is at one moment, into a checkpoint and out of it. Every rank takes part; rank 0 writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.checkpoint import Checkpoint
from mbcl.engine.epoch_state import EpochProgress
from mbcl.engine.plan_source import PlanSource
from mbcl.engine.setup import DataSizes
from mbcl.engine.step import Learner
from mbcl.errors import CheckpointError, MbclError
from mbcl.io.store import Store

logger = logging.getLogger(__name__)


def state_of(
    learner: Learner, kept: dict[str, Any], plans: dict[str, Any], progress: EpochProgress | None
) -> dict[str, Any]:
    """Everything that the coming steps depend on, besides the configuration.

    Args:
        learner: weights, optimiser, gradient scaler and the objective's state per sample.
        kept: the state of the embedding cache, empty without one.
        plans: the plans that were made for later than now.
        progress: of an epoch that is not done: its plan and the place in it.
    """
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "objective": learner.objective.state_dict(),
        "embeddings": kept,
        "plans": plans,
        "progress": progress.state_dict() if progress else {},
    }


def restore(state: dict[str, Any], learner: Learner, source: PlanSource) -> EpochProgress | None:
    """Put back what :func:`state_of` took; returns the progress of an epoch that is not done."""
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    learner.objective.load_state_dict(state["objective"])
    if source.cache is not None:
        source.cache.load_state_dict(state["embeddings"])
    source.load_state_dict(state["plans"])
    return EpochProgress.from_state(state["progress"]) if state["progress"] else None


def newest(store: Store, experiment: Experiment, facts: DataSizes, world: World) -> Checkpoint | None:
    """The newest whole checkpoint of this experiment, on every rank the same: rank 0 chooses, the others follow.

    Raises:
        CheckpointError: on every rank alike, if it is another experiment's, or its data had another size.
    """
    found = checkpoints.latest(store) if world.rank == 0 else None
    if world.rank == 0 and found is None and checkpoints.names(store):
        logger.warning("%s: no whole checkpoint is left; the training starts again", store.uri)
    name = collectives.broadcast_object(found.name if found else "", world)
    error: MbclError | None = None
    try:
        if name and found is None:
            found = checkpoints.load(store, name)
        if found is not None:
            _check_owner(store, found, experiment, facts)
    except MbclError as caught:
        error = caught
    collectives.raise_on_any_rank(error, world)
    return found


def _differences(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """``train.epochs was 2, now 3`` for every key that differs."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**stored, **wanted}:
            yield from _differences(stored.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif stored != wanted:
        yield f"{path} was {json.dumps(stored)}, now {json.dumps(wanted)}"


def _check_owner(store: Store, found: Checkpoint, experiment: Experiment, facts: DataSizes) -> None:
    wanted = experiment.model_dump(mode="json")
    stored = found.meta["experiment"]
    if stored != wanted:
        raise CheckpointError(
            f"{store.uri}: its checkpoint {found.name} belongs to another experiment: "
            f"{', '.join(_differences(stored, wanted))}; a training goes on with the configuration that it began with"
        )
    if found.meta["facts"] != asdict(facts):
        raise CheckpointError(
            f"{store.uri}: its checkpoint {found.name} was made from {found.meta['facts']['num_train']} training "
            f"samples, but the data have {facts.num_train} now"
        )
