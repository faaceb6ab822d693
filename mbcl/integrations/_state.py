"""What the adapters share: the state of planned batches in a framework's checkpoint, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import IterableDataset

from mbcl.errors import CheckpointError, ConfigError
from mbcl.torch import PlannedBatchSampler, Replanner


def save(batches: PlannedBatchSampler, step: int) -> dict[str, Any]:
    """Return the state of a batch sampler and of its replanner, after ``step`` batches of its epoch.

    With a replanner a collective call.
    """
    replanner = batches.source
    return {
        "batches": batches.state_dict(step),
        "replanner": replanner.state_dict() if isinstance(replanner, Replanner) else {},
    }


def load(batches: PlannedBatchSampler, state: Mapping[str, Any], *, skipped: bool = False) -> None:
    """Restore a :func:`save`.

    Args:
        batches: the batch sampler.
        state: the state.
        skipped: whether the framework itself skips the batches that were trained on; then the batch sampler begins with
            the first batch, and the plan is checked at once.

    Raises:
        CheckpointError: if it is the state of other plans.
    """
    replanner = batches.source
    if not isinstance(state, Mapping) or not {"batches", "replanner"} <= set(state):
        raise CheckpointError("not a state of planned batches")
    if bool(state["replanner"]) != isinstance(replanner, Replanner):
        raise CheckpointError("either the saved training or this one has a Replanner; both must have one, or none")
    if isinstance(replanner, Replanner):
        replanner.load_state_dict(state["replanner"])
    if skipped:
        batches.check_state(state["batches"])
    else:
        batches.load_state_dict(state["batches"])


def end(batches: PlannedBatchSampler) -> None:
    """End the background process of a replanner when a training ends: Python would wait for its plan at the exit."""
    if isinstance(batches.source, Replanner):
        batches.source.close()


def check_ranks(batches: PlannedBatchSampler, rank: int, world_size: int) -> None:
    """Check that a batch sampler is that of the framework's rank.

    Raises:
        ConfigError: if it is not.
    """
    if (batches.rank, batches.world_size) != (rank, world_size):
        raise ConfigError(
            f"the batches are those of rank {batches.rank} of {batches.world_size}, the trainer is rank {rank} of "
            f"{world_size}"
        )


def check_samples(batches: PlannedBatchSampler, dataset: Any) -> None:
    """Check that a data set has the positions of a batch sampler.

    Raises:
        ConfigError: if it has none, or another number.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ConfigError(f"planned batches are positions; a {type(dataset).__name__} has none")
    if batches.num_samples not in (None, len(dataset)):
        raise ConfigError(f"the plan is of {batches.num_samples} samples, the data set has {len(dataset)}")
