"""Saving and restoring the state of a training. Every rank takes part; rank 0 writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mbcl.config.experiment import Experiment, identity
from mbcl.data.samples import differing_sources
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.checkpoint import Checkpoint
from mbcl.engine.epoch_state import EpochProgress, missing_keys
from mbcl.engine.plan_source import PlanSource
from mbcl.engine.setup import DataSizes
from mbcl.engine.step import Learner
from mbcl.errors import CheckpointError, pluralize
from mbcl.io.store import Store

logger = logging.getLogger(__name__)


def state_of(
    learner: Learner, cached: dict[str, Any], plans: dict[str, Any], progress: EpochProgress | None
) -> dict[str, Any]:
    """Collect all state that later steps depend on, besides the configuration.

    ``cached`` is the state of the embedding cache, empty without one; ``progress`` is that of an unfinished epoch.
    """
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "objective": learner.objective.state_dict(),
        "embeddings": cached,
        "plans": plans,
        "progress": progress.state_dict() if progress else {},
    }


def restore(state: dict[str, Any], learner: Learner, source: PlanSource) -> EpochProgress | None:
    """Restore the state from :func:`state_of`; returns the progress of an unfinished epoch, if any."""
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    learner.objective.load_state_dict(state["objective"])
    if source.cache is not None:
        source.cache.load_state_dict(state["embeddings"])
    source.load_state_dict(state["plans"])
    return EpochProgress.from_state(state["progress"]) if state["progress"] else None


def newest(store: Store, experiment: Experiment, sizes: DataSizes, content: str, world: World) -> Checkpoint | None:
    """Load the newest valid checkpoint of this experiment; rank 0 chooses it, the others load the same one.

    ``content`` is the digest of the data's content.

    Raises:
        CheckpointError: on every rank alike, if it belongs to another experiment, or was made from other data.
    """
    checkpoint = checkpoints.latest(store) if world.rank == 0 else None
    if world.rank == 0 and checkpoint is None and checkpoints.names(store):
        logger.warning("%s: no whole checkpoint is left; the training starts again", store.uri)
    name = collectives.broadcast_object(checkpoint.name if checkpoint else "", world)

    def load_checked() -> Checkpoint | None:
        chosen = checkpoints.load(store, name) if name and checkpoint is None else checkpoint
        if chosen is not None:
            _check_owner(store, chosen, experiment, sizes, content)
        return chosen

    return collectives.run_and_sync_errors(load_checked, world)


def _differences(stored: Any, current: Any, path: str = "") -> Iterator[str]:
    """Yield ``train.epochs was 2, now 3`` for every key that differs."""
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in {**stored, **current}:
            yield from _differences(stored.get(key), current.get(key), f"{path}.{key}" if path else key)
    elif stored != current:
        yield f"{path} was {json.dumps(stored)}, now {json.dumps(current)}"


def _check_owner(store: Store, checkpoint: Checkpoint, experiment: Experiment, sizes: DataSizes, content: str) -> None:
    """Raise if the checkpoint belongs to another experiment, to other data, or has no whole progress."""
    current, stored = identity(experiment.resolved()), identity(checkpoint.meta["experiment"])
    if stored != current:
        raise CheckpointError(
            f"{store.uri}: its checkpoint {checkpoint.name} belongs to another experiment: "
            f"{', '.join(_differences(stored, current))}; a training goes on with the configuration that it began with"
        )
    if missing := missing_keys(checkpoint.state["progress"]):
        raise CheckpointError(
            f"{store.uri}: its checkpoint {checkpoint.name} was made within an epoch by an earlier version of mbcl and "
            f"lacks {', '.join(missing)}; without its folder the training goes on from the one before"
        )
    facts = json.loads(json.dumps(asdict(sizes)))
    if differing := differing_sources(checkpoint.meta["facts"].get("sources", {}), sizes.sources):
        raise CheckpointError(f"{store.uri}: its checkpoint {checkpoint.name} was made from other data: {differing}")
    if facts | checkpoint.meta["facts"] != facts:
        raise CheckpointError(
            f"{store.uri}: its checkpoint {checkpoint.name} was made from "
            f"{pluralize(checkpoint.meta['facts']['num_train'], 'training sample')}, but the data have "
            f"{sizes.num_train} now"
        )
    if checkpoint.meta.get("data", content) != content:
        raise CheckpointError(
            f"{store.uri}: its checkpoint {checkpoint.name} was made from other images, labels or ids than data.dir "
            f"{experiment.data.dir} holds now: their digest was {checkpoint.meta['data']}, it is {content}; "
            "a training goes on with the data that it began with, in any place"
        )
