"""The evaluation at the end of a trial, without a cluster."""

from __future__ import annotations

import pytest
import torch

from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.errors import CheckpointError
from mbcl.evaluation import EVALUATION_FILE
from mbcl.io.store import LocalStore
from mbcl.orchestration.cluster.capacity import TrialResources
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.trial.job import Job

pytest.importorskip("ray")


@pytest.fixture
def trained(space_file, tmp_path):
    """A trial of two epochs whose training is done: its job and its folder."""
    spec = expand(read_space(space_file())).specs[0]
    store = LocalStore(tmp_path / "trial")
    train(spec.experiment, world=World(), store=store)
    need = TrialResources(workers=1, cpus_per_worker=1, gpus_per_worker=0, threads=torch.get_num_threads())
    job = Job(
        trial_id=spec.trial_id,
        experiment=spec.experiment,
        store=store.uri,
        baselines=str(tmp_path / "baselines"),
        scratch=str(tmp_path / "scratch"),
        resources=need,
        group="test",
        num_tasks=1,
    )
    return job, store


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("damage", ["cut", "not there"])
def test_evaluate_end_refuses_the_checkpoint_before_the_last(trained, again, damage):
    """A finished trial would combine its metrics with the last row of training."""
    from mbcl.orchestration.trial.pretraining import evaluate_end

    job, store = trained
    state = store.folder / "checkpoints" / "epoch_000002" / "state.pt"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-1])
    else:
        store.delete("checkpoints/epoch_000002")
    with pytest.raises(CheckpointError, match="epoch_000002"):
        evaluate_end(job, again)
    assert not store.exists(EVALUATION_FILE)


def test_evaluate_end_evaluates_the_last_checkpoint(trained):
    from mbcl.orchestration.trial.pretraining import evaluate_end, reevaluation_store

    job, store = trained
    first = evaluate_end(job, False)
    assert '"checkpoint": "epoch_000002"' in store.read_bytes(EVALUATION_FILE).decode()
    assert evaluate_end(job, True) == first
    assert reevaluation_store(job).exists(EVALUATION_FILE)
