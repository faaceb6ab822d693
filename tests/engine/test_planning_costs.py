"""The description of what planning costs."""

from __future__ import annotations

import pytest
from engine import runs

from mbcl.engine import planning_cost
from mbcl.engine.setup import Samples, data_sizes, load_data

FRESH = "on fresh embeddings of all 50,000 samples: "
OSGD = {"name": "osgd", "k": 40, "q": 4}
CASES = [
    ("shuffle", {}, {}, ""),
    ("spectral", {}, {}, f"spectral: 1 plan an epoch, {FRESH}1 embedding pass an epoch"),
    (
        OSGD,
        {},
        {},
        f"osgd: 11 plans an epoch, each {FRESH}11 embedding passes an epoch; embeddings.refresh: epoch makes it 1",
    ),
    (
        OSGD,
        {"refresh": "epoch"},
        {"every": 3, "overlap": 1},
        "osgd: 11 plans every 3 epochs, all on one set of fresh embeddings of all 50,000 samples: "
        "1 embedding pass every 3 epochs; made beside training",
    ),
    (
        "spectral",
        {"source": "cached"},
        {"warmup_epochs": 2},
        "spectral: 1 plan an epoch, on the embeddings that training made: one embedding pass in all, before the first "
        "plan; the first 2 epochs are shuffle's",
    ),
    (
        OSGD,
        {},
        {"schedule": {"k": {1: 5}}},
        f"osgd: 2 to 11 plans an epoch, each {FRESH}2 to 11 embedding passes an epoch; "
        "embeddings.refresh: epoch makes it 1",
    ),
]


@pytest.mark.parametrize(("sampler", "embeddings", "planner", "words"), CASES)
def test_planning_cost_describes_plans_and_embedding_passes(sampler, embeddings, planner, words):
    content = runs.experiment(sampler, embeddings=embeddings, planner=planner)
    assert planning_cost(content, Samples(50_000)) == words


def test_data_sizes_checks_the_planner_schedule():
    content = runs.experiment({"name": "osgd", "k": 4, "q": 2}, planner={"schedule": {"k": {1: 12}, "pool": {0: 64}}})
    with (
        pytest.warns(UserWarning, match="has no parameter 'pool', so planner.schedule.pool is not used"),
        pytest.raises(ValueError, match=r"planner.schedule, from epoch 1 on: .*k may be at most 11"),
    ):
        data_sizes(content, load_data(content.data, seed=0))
