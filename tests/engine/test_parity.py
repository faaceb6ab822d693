"""One worker and several train on the same global batches and views, to the same weights."""

from __future__ import annotations

import tempfile

import gloo
import pytest
import torch
from engine import runs

from mbcl import dist
from mbcl.configuration import validate
from mbcl.dist import World
from mbcl.engine import PlanKey, Trainer
from mbcl.engine.embed import ViewKey, embed
from mbcl.errors import TrainingError
from mbcl.experiment import Experiment, read_experiment
from mbcl.plan import Embeddings
from mbcl.storage import LocalStore


@pytest.mark.dist
@pytest.mark.parametrize(
    ("sampler", "objective", "num_workers", "lr"),
    [
        ("shuffle", "simclr", 2, 0.05),
        ("osgd", "simclr", 2, 0.05),
        ("shuffle", "simclr", 4, 0.05),
        ("shuffle", "clip", 2, 0.05),
        ("osgd", "sogclr", 2, 0.05),
        ("shuffle", "sogclr", 4, 0.05),
        # Its squared exponentials magnify rounding with every step, the faster the larger the rate.
        ("shuffle", "hcl", 2, 0.01),
        ("shuffle", "dcl", 2, 0.05),
    ],
)
def test_several_workers_train_as_one(tmp_path, sampler, objective, num_workers, lr):
    content = runs.experiment(sampler, objective={"name": objective}, optimizer={"name": "lars", "lr": lr})
    torch.set_num_threads(1)
    losses, weights, rows = runs.run(World(), tmp_path / "one", content)
    ranks = gloo.run(runs.run, num_workers, str(tmp_path / "several"), content)
    assert len(losses) == 22, "two epochs of 180 // 16 steps"
    for rank_losses, rank_weights, rank_rows in ranks:
        assert rank_losses == pytest.approx(losses, rel=1e-4)
        assert runs.largest_difference(rank_weights, weights) < 1e-4
        for key in ("train/loss", "plan/loss", "plan/lift", "plan/coverage", "sogclr/u_age"):
            found, expected = ([row[key] for row in some] for some in (rank_rows, rows))
            assert found == (pytest.approx(expected, rel=1e-4) if None not in expected else expected)
    for _, rank_weights, _ in ranks[1:]:
        parameters = {key: value for key, value in rank_weights.items() if "running" not in key}
        first = {key: ranks[0][1][key] for key in parameters}
        assert runs.equal(parameters, first), "the ranks hold the same weights to the last bit"


@pytest.mark.dist
@pytest.mark.parametrize("sampler", ["shuffle", "osgd", "spectral"])
def test_the_shipped_experiment_is_the_same_on_two_workers_for_its_first_20_steps(tmp_path, sampler):
    shipped = read_experiment("tune_spaces/samplers.yaml")
    content = {**shipped, "data": {"name": "digits", "max_samples": 740}, "track": []}
    content["sampler"] = {"shuffle": {"name": "shuffle"}, "osgd": {"name": "osgd", "k": 20, "q": 5}}.get(
        sampler, {"name": "spectral", "k": 4}
    )
    content["train"] = {**shipped["train"], "epochs": 1}
    experiment = validate(Experiment, content, "test")
    torch.set_num_threads(1)
    losses, weights, _ = runs.run(World(), tmp_path / "one", experiment)
    assert len(losses) == 20
    for rank_losses, rank_weights, _ in gloo.run(runs.run, 2, str(tmp_path / "two"), experiment):
        assert rank_losses == pytest.approx(losses, rel=1e-4)
        assert runs.largest_difference(rank_weights, weights) < 1e-4


def _first_plan(world, content):
    """The embeddings before the first step, and the plan made of them."""
    trainer = Trainer(content, world=world, store=LocalStore(tempfile.mkdtemp()))
    learner = trainer.learner
    shard = embed(learner.model, learner.images, ViewKey(learner.seed), mode="train", batch_size=50, world=world)
    whole = Embeddings(*(dist.gather(part, world) for part in (shard.z1, shard.z2, shard.indices)))
    trainer.plans.request(PlanKey(0, 0), shard, content.build_sampler())
    return whole.ordered(180), trainer.plans.receive(PlanKey(0, 0))


@pytest.mark.dist
@pytest.mark.parametrize("num_workers", [2, 4])
def test_embeddings_and_plan_are_the_same_to_the_last_bit_on_any_number_of_workers(num_workers):
    """Four chunks of 45 on 2 and 4 workers: spectral plans flip with the last bit of an embedding."""
    content = runs.experiment("spectral")
    torch.set_num_threads(1)
    embeddings, planned = _first_plan(World(), content)
    for rank_embeddings, rank_planned in gloo.run(_first_plan, num_workers, content):
        assert torch.equal(rank_embeddings.z1, embeddings.z1)
        assert torch.equal(rank_embeddings.z2, embeddings.z2)
        assert rank_planned.plan.digest == planned.plan.digest
        assert (rank_planned.loss, rank_planned.lift) == (planned.loss, planned.lift)


@pytest.mark.dist
def test_a_training_of_one_worker_goes_on_with_two(tmp_path):
    """Checkpoints do not know how many workers wrote them."""
    whole, weights, _ = runs.run(World(), tmp_path / "whole", runs.experiment("osgd"))
    folder = tmp_path / "moved"
    content = runs.experiment("osgd")
    runs.interrupt(folder, content, after_epoch=1)
    ranks = gloo.run(runs.run, 2, str(folder), content)
    assert ranks[0][0] == pytest.approx(whole[11:], rel=1e-4), "the second epoch alone was trained"
    assert runs.largest_difference(ranks[0][1], weights) < 1e-4


def _train_from_weights_that_are_not_finite(world, content):
    trainer = Trainer(content, world=world, store=LocalStore(tempfile.mkdtemp()))
    with torch.no_grad():
        next(trainer.learner.model.parameters()).fill_(float("nan"))
    try:
        trainer._validate()
    except TrainingError as error:
        return str(error)
    return "no error"


@pytest.mark.dist
def test_embeddings_that_are_not_finite_end_every_rank():
    """20 validation samples are one rank's work; the other rank must not wait for it for ever."""
    first, second = gloo.run(_train_from_weights_that_are_not_finite, 2, runs.experiment())
    assert "rows are not finite" in first
    assert second != "no error"
