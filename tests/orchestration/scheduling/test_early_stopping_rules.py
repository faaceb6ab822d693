"""The rules of early stopping decide as Ray Tune's schedulers do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from mbcl.orchestration.scheduling.early_stopping import AsyncSuccessiveHalving, MedianStopping

MODES = st.sampled_from(["min", "max"])
EPOCH, VALUE = "epoch", "value"
TRIALS = "abcde"


@dataclass(frozen=True)
class Named:
    """What Ray's rules read of a trial."""

    trial_id: str


class RayOracle:
    """A scheduler of Ray Tune as the oracle of a rule. It sees finite values alone.

    Args:
        rule: the scheduler, which reads ``epoch`` and ``value``.
    """

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.trials: dict[str, Named] = {}

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if trial_id not in self.trials:
            self.trials[trial_id] = Named(trial_id)
            self.rule.on_trial_add(None, self.trials[trial_id])
        decision = self.rule.on_trial_result(None, self.trials[trial_id], {EPOCH: epoch, VALUE: value})
        # The median rule asserts that a stopped trial reports no more. A baseline goes on and is seen all the same.
        getattr(self.rule, "_stopped_trials", set()).clear()
        return bool(decision == "STOP")


@st.composite
def results(draw: st.DrawFn) -> list[tuple[str, int, float]]:
    """Interleaved results of several trials: few distinct values for ties, jumps, and now and then an epoch anew."""
    values = st.one_of(
        st.integers(-9, 9).map(float), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf])
    )
    reached: dict[str, int] = {}
    rows = []
    for trial, step, value in draw(
        st.lists(
            st.tuples(st.sampled_from(TRIALS), st.sampled_from([1, 1, 1, 2, 5, 40, 0, -1]), values),
            min_size=10,
            max_size=80,
        )
    ):
        reached[trial] = max(1, reached.get(trial, 0) + step)
        rows.append((trial, reached[trial], value))
    return rows


@settings(max_examples=300)
@given(results(), MODES, st.integers(1, 5), st.sampled_from([1.5, 2, 3, 4.0, 10]), st.sampled_from([None, 5, 9, 1000]))
def test_asha_decides_as_rays_does(rows, mode, grace_period, reduction_factor, max_t):
    tune = pytest.importorskip("ray.tune.schedulers")
    limits = {"grace_period": grace_period, "reduction_factor": reduction_factor, "max_t": max_t or 2**31}
    rule = AsyncSuccessiveHalving(mode=mode, **limits)
    oracle = RayOracle(
        tune.AsyncHyperBandScheduler(
            time_attr=EPOCH, metric=VALUE, mode=mode, brackets=1, stop_last_trials=False, **limits
        )
    )
    assert [rule.observe(*row) for row in rows] == [oracle.observe(*row) for row in rows]


@settings(max_examples=300)
@given(results(), MODES, st.sampled_from([1, 3, 4]), st.integers(1, 3))
def test_the_median_rule_decides_as_rays_does(rows, mode, grace_period, min_samples_required):
    ray = pytest.importorskip("ray")
    if Version(ray.__version__) < Version("2.60"):
        pytest.skip("before 2.60 Ray takes the median of empty windows, too, which is not a number")
    tune = pytest.importorskip("ray.tune.schedulers")
    limits = {"grace_period": grace_period, "min_samples_required": min_samples_required}
    rule = MedianStopping(mode=mode, **limits)
    # Ray's rule pauses a trial for others once it has had its slice of time; ours never pauses.
    oracle = RayOracle(
        tune.MedianStoppingRule(time_attr=EPOCH, metric=VALUE, mode=mode, min_time_slice=math.inf, **limits)
    )
    assert [rule.observe(*row) for row in rows] == [oracle.observe(*row) for row in rows]
