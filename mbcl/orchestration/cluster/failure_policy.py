"""Retries of failed training workers: lost processes are retried, deterministic exceptions are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from ray.train import FailureConfig

from mbcl.distributed.collectives import DISTRIBUTED_ERRORS
from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import MbclError, StorageError
from mbcl.io.store import open_store
from mbcl.orchestration.cluster.ray_internals import LOST_WORKER_ERRORS, FailurePolicy

PEER_FAILURE_MESSAGES = ("connection", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe", "peer", "store")
"""Parts of the messages with which a collective fails because *another* worker or the network was lost.

The type of the exception does not tell: gloo raises a plain RuntimeError.
"""


def is_peer_failure(error: BaseException) -> bool:
    """Return whether a worker failed because a collective lost another worker."""
    if isinstance(error, DISTRIBUTED_ERRORS):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, (MbclError, *LOST_WORKER_ERRORS)):
        return False
    return any(message in str(error).lower() for message in PEER_FAILURE_MESSAGES)


def is_deterministic(error: BaseException) -> bool:
    """Return whether a worker's failure is an exception of the code itself, which a retry would raise again.

    Args:
        error: from Ray Train: the exception of the training function, or one of Ray's if the process died.
    """
    if isinstance(error, (OSError, StorageError, *LOST_WORKER_ERRORS)):
        return False  # storage, network, a lost planner, a lost process
    return not is_peer_failure(error)


def root_cause(error: BaseException) -> BaseException:
    """Return the original error of a process, unwrapped from Ray's.

    If several workers failed, it is that of the lowest rank which did not merely lose another worker.
    """
    failures = getattr(error, "worker_failures", None)
    if failures:
        causes = [rank for rank in failures if not is_peer_failure(failures[rank])]
        return root_cause(failures[min(causes or failures)])
    inner = getattr(error, "cause", None)
    if isinstance(inner, BaseException):
        return root_cause(inner)
    return error


class CheckpointProgress:
    """Detects by its checkpoints whether a training has progressed.

    Args:
        location: the trial's folder.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._newest: str | None = None

    def has_advanced(self) -> bool:
        """Return whether there is a newer checkpoint than at the last call; False if the folder cannot be read."""
        previous = self._newest
        with suppress(OSError):
            self._newest = max(checkpoints.names(open_store(self._location)), default=previous)
        return self._newest != previous


class RetryLostWorkers(FailurePolicy):
    """Ray Train's failure policy, except that a deterministic exception ends the trial at once.

    After the loss of a process its peers fail in their collectives; the errors of peers are never decisive. A new
    checkpoint resets the count of losses: on spot nodes a long training exceeds any fixed limit.

    Args:
        failure_config: number of failures that are retried.
        location: the trial's folder, whose checkpoints show progress.
        capacity_may_come: returns whether the cluster may later have resources for workers that could not be started;
            starting them is then retried without limit.
    """

    def __init__(
        self, failure_config: FailureConfig, location: str, capacity_may_come: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(failure_config)
        self._progress = CheckpointProgress(location)
        self._capacity_may_come = capacity_may_come

    def waits_for_capacity(self) -> bool:
        """Return whether the cluster can ever run the workers."""
        return self._capacity_may_come()

    def has_progressed(self) -> bool:
        """Return whether there is a newer checkpoint than at the last failure."""
        return self._progress.has_advanced()

    def retries(self, worker_errors: Mapping[int, BaseException]) -> bool:
        """Return whether a process was lost, or no worker raised a deterministic exception."""
        errors = worker_errors.values()
        lost = any(isinstance(error, LOST_WORKER_ERRORS) for error in errors)
        return lost or not any(is_deterministic(error) for error in errors)
