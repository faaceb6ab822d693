"""Which failures of training workers are retried: lost processes, but no exception that would be raised again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ray.train import FailureConfig

from mbcl.distributed.collectives import DISTRIBUTED_ERRORS
from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import MbclError, StorageError
from mbcl.io.store import open_store
from mbcl.orchestration.cluster.ray_internals import LOST_WORKER_ERRORS, FailurePolicy

PEER_FAILURE_MESSAGES = ("connection", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe", "peer", "store")
"""Parts of the messages with which a collective fails because *another* worker or the network went away.

gloo raises a plain RuntimeError for it, so its type does not tell.
"""


def is_peer_failure(error: BaseException) -> bool:
    """Whether a worker's failure is the loss of another worker, as a collective reports it."""
    if isinstance(error, DISTRIBUTED_ERRORS):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, (MbclError, *LOST_WORKER_ERRORS)):
        return False
    return any(message in str(error).lower() for message in PEER_FAILURE_MESSAGES)


def is_deterministic(error: BaseException) -> bool:
    """Whether a worker's failure is an exception of the code itself, which another attempt would raise again.

    Args:
        error: as Ray Train passes it on: what the training function raised, or one of Ray's where the process died.
    """
    if isinstance(error, (OSError, StorageError, *LOST_WORKER_ERRORS)):
        return False  # storage, network, a lost planner, a lost process
    return not is_peer_failure(error)


def root_cause(error: BaseException) -> BaseException:
    """The error of the process where it happened, unwrapped from Ray's.

    Of several workers it is that of the lowest rank which did not merely lose another.
    """
    failures = getattr(error, "worker_failures", None)
    if failures:
        causes = [rank for rank in failures if not is_peer_failure(failures[rank])]
        return root_cause(failures[min(causes or failures)])
    inner = getattr(error, "cause", None)
    if isinstance(inner, BaseException):
        return root_cause(inner)
    return error


class RetryLostWorkers(FailurePolicy):
    """Ray Train's failure policy, but an exception that would be raised again ends the trial at once.

    Where a process was lost its peers fail in their collectives; those errors alone never decide. Only losses without a
    new checkpoint in between add up to the limit: on spot nodes a long training meets more of them than any limit.

    Args:
        failure_config: how many failures are retried.
        location: the trial's folder, whose checkpoints show progress; empty for not looking.
        capacity_may_come: whether workers that could not be started may find room later; then they are retried without
            limit.
    """

    def __init__(
        self,
        failure_config: FailureConfig,
        location: str = "",
        capacity_may_come: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(failure_config)
        self._location = location
        self._capacity_may_come = capacity_may_come
        self._newest: str | None = None

    def waits_for_capacity(self) -> bool:
        """Whether the cluster can ever hold the workers."""
        return self._capacity_may_come()

    def has_progressed(self) -> bool:
        """Whether a checkpoint is newer than that at the last failure."""
        newest = self._newest_checkpoint()
        if newest is None or newest == self._newest:
            return False
        self._newest = newest
        return True

    def _newest_checkpoint(self) -> str | None:
        """The name of the newest checkpoint, None if unknown."""
        if not self._location:
            return None
        try:
            return max(checkpoints.names(open_store(self._location)), default=None)
        except OSError:
            return None

    def retries(self, worker_errors: Mapping[int, BaseException]) -> bool:
        """Whether a process was lost, or no worker raised an exception of its own."""
        errors = worker_errors.values()
        lost = any(isinstance(error, LOST_WORKER_ERRORS) for error in errors)
        return lost or not any(is_deterministic(error) for error in errors)
