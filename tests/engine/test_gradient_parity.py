"""The gradient parity certificate: the code behind `mbcl doctor`, on real processes."""

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
from mbcl.engine.gradient_parity import DTYPES, EXACT, Case, Errors, certify, relative_error
from mbcl.objectives import OBJECTIVES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_one_worker_with_chunks_has_the_gradients_of_the_whole_batch(objective, dtype):
    found = certify(World(), Case(objective, dtype, "cached"))
    assert found.within, found
    assert found.bound == EXACT if dtype == "float64" else found.bound > EXACT


FOUR = [("clip", 4), ("sogclr", 4)]
"""One objective that needs the others' projections, and one that has state."""


@pytest.mark.dist
@pytest.mark.parametrize(("objective", "num_workers"), [*((name, 2) for name in OBJECTIVES), *FOUR])
def test_several_workers_have_the_gradients_of_one(objective, num_workers):
    for accumulation, dtype in product(("none", "cached"), DTYPES):
        found = gloo.run(certify, num_workers, Case(objective, dtype, accumulation))
        assert found[0].within, found[0]
        assert len(set(found)) == 1, "every rank knows the largest error of all"


def _certify_with_a_gather_that_drops_the_others_gradients(world, case):
    """The published fault: the gather's backward keeps what this rank alone sends back."""
    whole = collectives.gather_with_grad

    def dropped(x, world):
        others = whole(x.detach(), world)
        start = world.rank * len(x)
        return torch.cat([others[:start], x, others[start + len(x) :]])

    collectives.gather_with_grad = dropped
    try:
        return certify(world, case)
    finally:
        collectives.gather_with_grad = whole


def _certify_without_commit(world, case):
    """State per sample that this rank alone updates."""
    from mbcl.objectives import SogCLR

    commit = SogCLR.commit

    def own_part(self, indices, values):
        own = slice(world.rank * len(indices) // world.size, (world.rank + 1) * len(indices) // world.size)
        commit(self, indices[own], values[own])

    SogCLR.commit = own_part
    try:
        return certify(world, case)
    finally:
        SogCLR.commit = commit


@pytest.mark.dist
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_certificate_finds_dropped_gradients(objective, dtype):
    found = gloo.run(_certify_with_a_gather_that_drops_the_others_gradients, 2, Case(objective, dtype))[0]
    assert found.gradients > found.bound


@pytest.mark.dist
def test_the_certificate_finds_state_that_differs_between_ranks():
    found = gloo.run(_certify_without_commit, 2, Case("sogclr"))[0]
    assert found.state > found.bound


def test_errors_that_are_not_finite_are_never_within_their_bound():
    inf, nan = float("inf"), float("nan")
    assert Errors(0.0, 0.0, 0.0, bound=0.0).within
    assert not Errors(inf, 0.0, 0.0, bound=inf).within
    assert not Errors(0.0, nan, 0.0, bound=1.0).within
    assert not Errors(0.0, 0.0, 0.0, bound=nan).within


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    nan, one = torch.tensor([float("nan"), 1.0]), torch.ones(2)
    for found, expected in ((nan, one), (one, nan), (nan, nan), (one / 0, one / 0)):
        assert relative_error(found, expected) == float("inf")


@pytest.mark.dist
def test_the_command_prints_the_errors_and_writes_them(tmp_path):
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
def test_bad_options_are_one_line(options, text, capsys):
    from mbcl.cli import main

    assert main(["doctor", *options]) == 2
    assert text in capsys.readouterr().err
