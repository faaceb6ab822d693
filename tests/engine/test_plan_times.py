"""The forward passes of a training: predicted from its configuration, and counted while it runs."""

from __future__ import annotations

import pytest
from engine import runs
from hypothesis import given
from hypothesis import strategies as st

from mbcl.distributed.collectives import World
from mbcl.engine.plan_times import TRAINED, PlanTimes, forward_passes
from mbcl.engine.setup import Samples

OSGD = {"name": "osgd", "k": 2, "q": 1}
"""Plans of 2 batches for epochs of 5 steps: 3 rounds an epoch."""
CASES = [
    ("shuffle", {}, {}, 0),
    ("spectral", {}, {}, 4),
    ("spectral", {"source": "cached"}, {"overlap": 1}, 1),
    ("spectral", {}, {"overlap": 1}, 3),  # the first two plans come from the same embeddings
    ("spectral", {}, {"overlap": 1, "warmup_epochs": 1}, 3),
    ("spectral", {}, {"every": 2, "overlap": 1}, 2),
    ("spectral", {}, {"warmup_epochs": 4}, 0),
    (OSGD, {}, {}, 12),
    (OSGD, {}, {"overlap": 1, "every": 3}, 5),
    (OSGD, {"refresh": "epoch"}, {"overlap": 1}, 3),
    (OSGD, {}, {"schedule": {"k": {2: 1}}}, 8),
    (OSGD, {"refresh": "epoch"}, {"warmup_epochs": 1, "every": 2}, 2),
]


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
@pytest.mark.parametrize(("sampler", "embeddings", "planner", "passes"), CASES)
def test_a_training_makes_the_passes_that_its_configuration_predicts(tmp_path, sampler, embeddings, planner, passes):
    content = runs.exact(sampler, train={"epochs": 4}, embeddings=embeddings, planner=planner)
    assert PlanTimes(content, Samples(90)).embedding_passes() == passes
    _, _, rows = runs.run(World(), tmp_path, content)
    assert [row["work/images"] for row in rows] == [80, 160, 240, 320]
    assert rows[-1]["work/passes"] == forward_passes(content, Samples(90)) == TRAINED * 320 + 90 * passes
    assert all(row["work/passes"] >= TRAINED * row["work/images"] for row in rows)


@given(
    st.sampled_from(["shuffle", "spectral", "osgd"]),
    st.integers(1, 12),
    st.fixed_dictionaries({"overlap": st.sampled_from([0, 1]), "every": st.integers(1, 4)}),
    st.integers(64, 5000),
)
def test_more_epochs_never_take_fewer_passes(sampler, epochs, planner, num_train):
    contents = (
        runs.experiment(sampler, train={"epochs": n, "batch_size": 16}, planner=planner) for n in (epochs, epochs + 1)
    )
    passes = [forward_passes(content, Samples(num_train)) for content in contents]
    steps = num_train // 16
    assert passes[0] + TRAINED * 16 * steps <= passes[1]
