"""Which failures of training workers are worth another try: lost processes, not errors that come again."""

from __future__ import annotations

from collections.abc import Callable

from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError  # noqa: TID251
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision  # noqa: TID251
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import MbclError, StorageError
from mbcl.io.store import open_store

PEER_FAILURE_MESSAGES = ("connection", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe", "peer", "store")
"""In the text of an exception that a worker raises because *another* one, or the network, went away."""
LOST = (RayError, RayTrainError)
"""What Ray raises for a process that died or that it could not reach."""


def is_peer_failure(error: BaseException) -> bool:
    """Whether a worker's failure is the loss of another worker, as this one met it in a collective."""
    if isinstance(error, (OSError, MbclError, *LOST)):
        return False
    return any(word in str(error).lower() for word in PEER_FAILURE_MESSAGES)


def is_deterministic(error: BaseException) -> bool:
    """Whether a worker's failure is an exception of the code itself, which another attempt would meet again.

    Args:
        error: as Ray Train passes it on: what the training function raised, or one of Ray's where the process died.
    """
    if isinstance(error, (OSError, StorageError, *LOST)):
        return False  # storage, network, a lost planner, a lost process
    return not is_peer_failure(error)


def root_cause(error: BaseException) -> BaseException:
    """The error of the process where it happened, out of what Ray wrapped around it.

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


class RetryLostWorkers(DefaultFailurePolicy):
    """Ray Train's failure policy, but an exception that would come again ends the trial at once.

    Where a process was lost its peers fail in their collectives; those errors never decide alone. Only losses without a
    new checkpoint in between add up to the limit: on spot nodes a long training meets more of them than any limit.

    Args:
        failure_config: how often a worker group is started again.
        location: the trial's folder, whose checkpoints are looked at; empty for not looking.
        room: whether workers that could not be started for want of room may find some: then it is waited for, however
            long that takes.
    """

    def __init__(
        self, failure_config: FailureConfig, location: str = "", room: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(failure_config)
        self._room = room
        self._location = location
        self._newest: str | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether the worker group is started again."""
        if isinstance(training_failed_error, ControllerError):
            cause = training_failed_error.controller_failure
            if isinstance(cause, WorkerGroupStartupTimeoutError) and self._room():
                return FailureDecision.RETRY
        newest = self._look()
        if newest is not None and newest != self._newest:
            self._newest, self._worker_group_failures, self._controller_failures = newest, 0, 0
        return super().make_decision(training_failed_error)

    def _look(self) -> str | None:
        """The name of the newest checkpoint, None where that is not known."""
        if not self._location:
            return None
        try:
            return max(checkpoints.names(open_store(self._location)), default=None)
        except OSError:
            return None

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError):
            failures = training_failed_error.worker_failures.values()
            lost = any(isinstance(error, LOST) for error in failures)
            if not lost and any(is_deterministic(error) for error in failures):
                return False
        return bool(super()._is_retryable_error(training_failed_error))
