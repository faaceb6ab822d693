"""Which failures of workers are retried."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from ray.exceptions import RayActorError  # noqa: E402
from ray.train import ControllerError, FailureConfig, WorkerGroupError  # noqa: E402
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # noqa: E402
from ray.train.v2._internal.execution.failure_handling import FailureDecision  # noqa: E402
from torch.distributed import DistStoreError  # noqa: E402

from mbcl.errors import OwnershipError, StorageError  # noqa: E402
from mbcl.orchestration.cluster.failure_policy import RetryLostWorkers  # noqa: E402

BUG = TypeError("unsupported operand")
MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
PEER = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
DISK = OSError(5, "Input/output error")
BUCKET = StorageError("s3://bucket: cannot be written: timed out")
OWNED = OwnershipError("/results: another run works there since, this one may not write any more")
DEAD = RayActorError()


@pytest.mark.parametrize(
    ("failures", "again"),
    [
        ([ValueError("the store is full")], False),
        ([DistStoreError("wait timeout")], True),
        ([BUG], False),
        ([MEMORY], False),
        ([BUG, PEER], False),
        ([PEER, MEMORY], False),
        ([DEAD], True),
        ([DEAD, PEER], True),
        ([DEAD, BUG], True),
        ([PEER], True),
        ([DISK], True),
        ([BUCKET], True),
        ([OWNED], False),
    ],
)
def test_retry_lost_workers_retries_only_errors_that_may_pass(tmp_path, failures, again):
    policy = RetryLostWorkers(FailureConfig(max_failures=2), str(tmp_path))
    error = WorkerGroupError("words", dict(enumerate(failures)))
    decisions = [policy.make_decision(error) for _ in range(3)]
    retry, stop = FailureDecision.RETRY, FailureDecision.RAISE
    assert decisions == ([retry, retry, stop] if again else [stop, stop, stop])


@pytest.mark.parametrize(
    ("failures", "named"),
    [({0: PEER, 1: DEAD}, DEAD), ({0: PEER, 1: BUG}, BUG), ({0: PEER, 1: DISK}, DISK), ({0: PEER, 1: PEER}, PEER)]
    + [({0: BUG, 1: DEAD}, BUG), ({0: PEER, 1: OWNED, 2: PEER}, OWNED)],
)
def test_root_cause_prefers_errors_that_are_no_peer_failures(failures, named):
    from mbcl.orchestration.cluster.failure_policy import root_cause

    assert root_cause(WorkerGroupError("words", failures)) is named


@pytest.mark.parametrize(
    "error", [WorkerGroupError("words", {0: DEAD}), ControllerError(WorkerGroupStartupTimeoutError(2))]
)
def test_retry_lost_workers_counts_only_losses_without_a_new_checkpoint(tmp_path, error):
    policy = RetryLostWorkers(FailureConfig(max_failures=2, controller_failure_limit=2), str(tmp_path))
    decisions = []
    for epoch in (1, 2, 3, 4):
        (tmp_path / "checkpoints" / f"epoch_{epoch:06d}").mkdir(parents=True)
        decisions += [policy.make_decision(error) for _ in range(2)]
    assert set(decisions) == {FailureDecision.RETRY}
    assert policy.make_decision(error) == FailureDecision.RAISE


@pytest.mark.parametrize(("room", "retries"), [(True, 20), (False, 2)])
def test_retry_lost_workers_waits_while_capacity_may_come(tmp_path, room, retries):
    limits = FailureConfig(max_failures=2, controller_failure_limit=2)
    policy = RetryLostWorkers(limits, str(tmp_path), lambda: room)
    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    decisions = [policy.make_decision(error) for _ in range(20)]
    assert decisions.count(FailureDecision.RETRY) == retries
