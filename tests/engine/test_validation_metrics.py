"""kNN and a linear probe in the validations of a training."""

from __future__ import annotations

import json

import gloo
import pytest
from engine import runs

from mbcl.config.evaluation import Evaluation
from mbcl.distributed.collectives import World
from mbcl.errors import ConfigError
from mbcl.evaluation import evaluate
from mbcl.io.store import LocalStore


def settings(**changes):
    block = {"validation_metrics": ["knn", "probe"], "knn": {"k": 5}, "probe": {"penalties": [0.1, 0.01]}}
    return {"evaluation": {**block, "draws": 1, **changes}}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_validation_measures_what_the_evaluation_measures(tmp_path):
    """On the last checkpoint and the validation split both give the same accuracies."""
    runs.run(World(), tmp_path, runs.experiment(**settings()))
    last = rows(tmp_path)[-1]
    wanted = Evaluation(split="validation", metrics=["knn", "probe"], **settings()["evaluation"])
    measured = evaluate(LocalStore(tmp_path), settings=wanted, out=LocalStore(tmp_path / "e"))
    assert measured == {"knn/top1": last["val/knn/top1"], "probe/top1": last["val/probe/top1"]}
    assert 0.1 < last["val/knn/top1"] <= 1.0


def test_validation_without_them_changes_nothing(tmp_path):
    runs.run(World(), tmp_path / "with", runs.experiment(**settings()))
    runs.run(World(), tmp_path / "without", runs.experiment(evaluation={"draws": 1}))
    for one, other in zip(rows(tmp_path / "with"), rows(tmp_path / "without"), strict=True):
        assert other["val/knn/top1"] is None
        assert other["val/probe/top1"] is None
        assert one["train/loss"] == other["train/loss"]
        assert one["val/retrieval/mrr"] == other["val/retrieval/mrr"]


def _train(world, folder):
    runs.run(world, folder, runs.exact(**settings()))


@pytest.mark.dist
def test_validation_on_two_workers_equals_one(tmp_path):
    gloo.run(_train, 2, tmp_path / "two")
    runs.run(World(), tmp_path / "one", runs.exact(**settings()))
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for key in ("val/knn/top1", "val/probe/top1"):
            assert one[key] == two[key]


def test_validation_refuses_more_neighbours_than_training_images(tmp_path):
    with pytest.raises(ConfigError, match="evaluation.knn.k: 500 is above the 180 training images"):
        runs.run(World(), tmp_path, runs.experiment(**settings(knn={"k": 500})))
