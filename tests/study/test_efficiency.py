"""The efficiency of a sweep by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbcl.study.efficiency import sweep_efficiency
from mbcl.study.record import Efficiency, StudyRecord, TrialRecord


def study_of(*seconds: dict[str, float]) -> StudyRecord:
    trials = {
        f"{number}-test": TrialRecord(
            ordinal=number, setting=0, seed=number, sampler="", objective="", parameters={}, seconds=stages
        )
        for number, stages in enumerate(seconds)
    }
    return StudyRecord(name="test", space_digest="", metric="val/x", mode="max", created="", trials=trials)


def test_sweep_efficiency_by_hand():
    """Two cores for 20 s: 12 + 3 s of work in one trial, 4 s in a stopped one, 1 s around each."""
    study = study_of({"total": 16.0, "training": 12.5, "evaluation": 3.0}, {"total": 5.0}, {"total": 99.0})
    epochs = {"0-test": 12.0, "1-test": 4.0}
    found = sweep_efficiency(
        study, epochs, epochs.__getitem__, num_devices=2, devices_per_trial=1, device="core", wall=20.0
    )
    assert found == Efficiency(devices=2, device="core", wall=20.0, work=19.0, busy=21.0)
    assert found.share == pytest.approx(19 / 40)
    assert found.describe().startswith("0.47 of 2 cores x 20.0 s were epochs and evaluations, 0.05 starts and ends")
    assert "0.47 outside trials" in found.describe()


def test_sweep_efficiency_of_a_resumed_trial_counts_no_more_than_its_time():
    study = study_of({"total": 5.0, "evaluation": 1.0})
    found = sweep_efficiency(
        study, ["0-test"], lambda key: 100.0, num_devices=1, devices_per_trial=1, device="GPU", wall=10.0
    )
    assert (found.work, found.busy, found.share) == (5.0, 5.0, 0.5)
    assert "of 1 GPU x 10.0 s" in found.describe()


def test_sweep_efficiency_of_a_trial_without_epochs_is_its_training():
    study = study_of({"total": 5.0, "training": 4.0})
    found = sweep_efficiency(
        study, ["0-test"], lambda key: 0.0, num_devices=1, devices_per_trial=1, device="core", wall=8.0
    )
    assert found.share == 0.5


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), max_size=6), st.integers(1, 8))
def test_sweep_efficiency_splits_all_time(trials, devices):
    study = study_of(*({"total": total} for total, _ in trials))
    epochs = {key: seconds for key, (_, seconds) in zip(study.trials, trials, strict=True)}
    wall = 1.0 + sum(total for total, _ in trials)
    found = sweep_efficiency(
        study, epochs, epochs.__getitem__, num_devices=devices, devices_per_trial=1, device="core", wall=wall
    )
    assert 0 <= found.work <= found.busy <= devices * wall
    assert 0 <= found.share <= 1
