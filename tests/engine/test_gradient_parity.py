"""The gradient parity check behind `mbcl doctor`, on real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product

import gloo
import pytest
import torch

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.gradient_parity import DTYPES, EXACT, LOCAL, Case, Errors, certify, relative_error
from mbcl.engine.step import Learner
from mbcl.objectives import OBJECTIVES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", [*OBJECTIVES, LOCAL])
def test_certify_one_worker_with_chunks_is_within_the_bound(objective, dtype):
    errors = certify(World(), Case(objective, dtype, "cached"))
    assert errors.within, errors
    assert errors.bound == EXACT if dtype == "float64" else errors.bound > EXACT


FOUR = [("clip", 4), ("sogclr", 4), (LOCAL, 4)]
"""One objective that needs the projections of other ranks, one with state, and one that needs nothing."""


@pytest.mark.dist
@pytest.mark.parametrize(("objective", "num_workers"), [*((name, 2) for name in (*OBJECTIVES, LOCAL)), *FOUR])
def test_certify_several_workers_is_within_the_bound(objective, num_workers):
    for accumulation, dtype in product(("none", "cached"), DTYPES):
        errors = gloo.run(certify, num_workers, Case(objective, dtype, accumulation))
        assert errors[0].within, errors[0]
        assert len(set(errors)) == 1, "every rank knows the largest error of all"


def _certify_with_a_gather_that_drops_gradients(world, case):
    """The published bug: the backward of the gather returns only the gradients of this rank."""
    gather = collectives.gather_with_grad

    def gather_and_drop(x, world):
        gathered = gather(x.detach(), world)
        start = world.rank * len(x)
        return torch.cat([gathered[:start], x, gathered[start + len(x) :]])

    collectives.gather_with_grad = gather_and_drop
    try:
        return certify(world, case)
    finally:
        collectives.gather_with_grad = gather


def _certify_without_commit(world, case):
    """State per sample that each rank updates for its own samples only."""
    from mbcl.objectives import SogCLR

    commit = SogCLR.commit

    def commit_local_part(self, indices, values):
        local_part = slice(world.rank * len(indices) // world.size, (world.rank + 1) * len(indices) // world.size)
        commit(self, indices[local_part], values[local_part])

    SogCLR.commit = commit_local_part
    try:
        return certify(world, case)
    finally:
        SogCLR.commit = commit


@pytest.mark.dist
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_certify_detects_a_gather_that_drops_gradients(objective, dtype):
    errors = gloo.run(_certify_with_a_gather_that_drops_gradients, 2, Case(objective, dtype))[0]
    assert errors.gradients > errors.bound


@pytest.mark.dist
def test_certify_detects_state_that_differs_between_ranks():
    errors = gloo.run(_certify_without_commit, 2, Case("sogclr"))[0]
    assert errors.state > errors.bound


def _certify_with_local_losses_that_are_summed(world, case):
    """A rank's loss is the mean over its own part, so the sum over the ranks is W times the mean over the batch."""
    loss = Learner._loss
    Learner._loss = lambda self, *arguments: loss(self, *arguments) * world.size
    try:
        return certify(world, case)
    finally:
        Learner._loss = loss


@pytest.mark.dist
def test_certify_detects_local_losses_that_are_summed():
    errors = gloo.run(_certify_with_local_losses_that_are_summed, 2, Case(LOCAL, steps=1))[0]
    assert min(errors.loss, errors.gradients) == pytest.approx(1, rel=EXACT), "twice as large"


def test_errors_within_is_false_for_values_not_finite():
    inf, nan = float("inf"), float("nan")
    assert Errors(0.0, 0.0, 0.0, bound=0.0).within
    assert not Errors(inf, 0.0, 0.0, bound=inf).within
    assert not Errors(0.0, nan, 0.0, bound=1.0).within
    assert not Errors(0.0, 0.0, 0.0, bound=nan).within


def test_relative_error_equals_hand_values():
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    nan, one = torch.tensor([float("nan"), 1.0]), torch.ones(2)
    for actual, expected in ((nan, one), (one, nan), (nan, nan), (one / 0, one / 0)):
        assert relative_error(actual, expected) == float("inf")


@pytest.mark.dist
def test_doctor_prints_and_writes_the_errors(tmp_path):
    options = ["--workers", "2", "--objectives", "sog", "--accumulation", "none", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "mbcl", "doctor", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all within their bounds" in done.stdout
    results = json.loads((tmp_path / "doctor.json").read_text())["results"]
    assert [(r["workers"], r["dtype"], r["within"]) for r in results] == [(2, dtype, True) for dtype in DTYPES]
    assert all(r["objective"] == "sogclr" and r["gradients"] <= r["bound"] for r in results)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "3"], "--workers: found 3, allowed are divisors of 8"),
        (["--objectives", "simcl"], "unknown objective 'simcl'; did you mean 'simclr'?"),
        (["--steps", "0"], "--steps must be a whole number >= 1, found 0"),
    ],
)
def test_doctor_refuses_bad_options_in_one_line(options, text, capsys):
    from mbcl.cli import main

    assert main(["doctor", *options]) == 2
    assert text in capsys.readouterr().err
