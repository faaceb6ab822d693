"""Which failures of training workers are worth another try: lost processes, not errors that come again."""

from __future__ import annotations

from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from mbcl.engine import checkpoint as checkpoints
from mbcl.storage import open_store

LOST_WORDS = ("connection", "gloo", "nccl", "timed out", "timeout", "socket", "broken pipe", "peer", "store")
"""In the text of an exception that a worker raises because *another* one, or the network, went away."""


def comes_again(error: BaseException) -> bool:
    """Whether a worker's failure is an exception of the code itself, which another attempt would meet again."""
    if not isinstance(error, UserExceptionWithTraceback):
        return False  # the process died, or Ray could not reach it
    cause = error._base_exc
    if isinstance(cause, OSError | RayError):
        return False  # storage, network, a lost planner
    return not any(word in str(cause).lower() for word in LOST_WORDS)


class LostOnly(DefaultFailurePolicy):
    """Ray Train's failure policy, but an exception that would come again ends the trial at once.

    Where a process was lost its peers fail in their collectives; those errors never decide alone. Only losses without a
    new checkpoint in between add up to the limit: on spot nodes a long training meets more of them than any limit.

    Args:
        failure_config: how often a worker group is started again.
        location: the trial's folder, whose checkpoints are looked at; empty for not looking.
    """

    def __init__(self, failure_config: FailureConfig, location: str = "") -> None:
        super().__init__(failure_config)
        self._location = location
        self._newest: str | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether the worker group is started again."""
        newest = self._look()
        if newest is not None and newest != self._newest:
            self._newest, self._worker_group_failures = newest, 0
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
            lost = any(not isinstance(error, UserExceptionWithTraceback) for error in failures)
            if not lost and any(comes_again(error) for error in failures):
                return False
        return bool(super()._is_retryable_error(training_failed_error))
