"""A synthetic study as a trial: its resolved block, its files, and its equality with the command's study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mbcl.cli import main
from mbcl.config.base import validate
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.synthetic.experiment import SyntheticExperiment
from mbcl.synthetic.settings import Settings
from mbcl.synthetic.study import run
from mbcl.synthetic.trial import run_synthetic_trial

SMALL = {"n": 6, "dim": 5, "steps": 40, "log_every": 10}


def experiment(sampler: str = "shuffle", seed: int = 0, **block: Any) -> SyntheticExperiment:
    content = {"seed": seed, "sampler": {"name": sampler}, "synthetic": {**SMALL, **block}}
    return validate(SyntheticExperiment, content, "test")


@pytest.mark.parametrize("sampler", ["fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral", "osgd"])
def test_run_synthetic_trial_equals_the_study_of_the_command(sampler: str, tmp_path: Path) -> None:
    """One seed of the study: its metrics, the rows of its curve and its points."""
    metrics = run_synthetic_trial(experiment(sampler, seed=3), LocalStore(tmp_path))
    both_seeds = run(Settings(n=6, dim=5, steps=40, log_every=10, samplers=(sampler,), seeds=(2, 3)))
    (curve,) = both_seeds.curves
    expected = {
        "synthetic/distance": curve.final.distance[1],
        "synthetic/true_loss": curve.final.true_loss[1],
        "synthetic/excess": curve.final.true_loss[1] - both_seeds.reference.full_loss,
        "synthetic/rearranging": curve.final.rearranging[1],
        "synthetic/mean_loss": float(curve.mean_loss[1]),
        "synthetic/mean_loss_error": 0.0,
        "synthetic/steps": 40,
        "synthetic/updates": curve.total_updates,
        "synthetic/samples": curve.total_samples,
    }
    assert metrics == pytest.approx(expected, rel=1e-8, abs=1e-10)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 11, 21, 31, 40]
    assert [row["step"] for row in rows] == curve.updates.tolist()
    assert [row["synthetic/distance"] for row in rows] == pytest.approx(curve.course.distance[1], rel=1e-8)
    assert {key: rows[-1][key] for key in rows[-1] if key in metrics} == pytest.approx(
        {key: value for key, value in metrics.items() if not key.startswith("synthetic/mean")}
    )
    points = np.load(tmp_path / "points.npz")
    assert np.array_equal(points["start"], both_seeds.start_2SND[:, 1])
    np.testing.assert_allclose(points["x"], curve.x_2SND[:, 1], rtol=1e-9, atol=1e-10)


def test_run_synthetic_trial_is_reproduced_by_its_config_file(tmp_path: Path) -> None:
    first = run_synthetic_trial(experiment("osgd", n=12, dim=None), LocalStore(tmp_path / "a"))
    content = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert content["sampler"]["k"] == 6
    assert content["sampler"]["temperature"] == 1.0
    assert content["synthetic"]["dim"] == 24
    again = validate(SyntheticExperiment, content, "config.yaml")
    assert again.digest == experiment("osgd", n=12, dim=None).digest
    assert run_synthetic_trial(again, LocalStore(tmp_path / "b")) == first
    for name in ("config.yaml", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_resolved_derives_sampler_parameters_from_the_final_n() -> None:
    base = experiment("osgd").model_dump(mode="json")
    base["synthetic"]["n"] = 40
    assert validate(SyntheticExperiment, base, "test").resolved()["sampler"]["k"] == 20


def test_run_synthetic_trial_without_optimum_uses_one_reference_loss(tmp_path: Path) -> None:
    """The reference is the least loss of the restarts, independent of the trial."""
    results = [
        run_synthetic_trial(experiment(name, dim=4, steps=steps, restarts=3), LocalStore(tmp_path / name))
        for name, steps in (("fixed", 5), ("full", 3000))
    ]
    least = {metrics["synthetic/true_loss"] - metrics["synthetic/excess"] for metrics in results}
    assert max(least) - min(least) < 1e-12
    assert all(metrics["synthetic/distance"] is metrics["synthetic/rearranging"] is None for metrics in results)


def test_train_refuses_a_synthetic_block_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = Path(__file__).parents[2] / "tune_spaces" / "synthetic.yaml"
    assert main(["train", "--config", str(space), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {space}: synthetic: a synthetic study pretrains nothing")
    assert error.count("\n") == 1
    assert main(["train", "--set", "synthetic.n=8", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"synthetic": None}, "synthetic: Input should be a valid dictionary"),
        ({"synthetic": {"n": 1}}, "synthetic.n: Input should be greater than or equal to 2, found 1"),
        ({"synthetic": {"n": 8.5}}, "synthetic.n: Input should be a valid integer"),
        ({"synthetic": {"n": 10_001}}, "synthetic.n: Input should be less than or equal to 10000"),
        ({"synthetic": {"n": 10_000, "dim": 6711}}, "synthetic.dim: found 6711, allowed with n 10000 are at most"),
        ({"synthetic": {"dims": 4}}, "synthetic.dims: unknown key; did you mean 'dim'?"),
        ({"synthetic": {"lr": 0}}, "synthetic.lr: Input should be greater than 0"),
        ({"synthetic": {"lr": float("nan")}}, "synthetic.lr: Input should be a finite number"),
        ({"synthetic": {"batch_size": 9}}, "synthetic.batch_size: found 9, which is above n 8"),
        ({"synthetic": {"steps": 1_999_999, "log_every": 2}}, "synthetic.log_every: found 2: with 1999999 steps"),
        ({"synthetic": {"accumulate": "median"}}, "synthetic.accumulate: Input should be 'sum' or 'mean'"),
        ({"synthetic": {}, "train": {"epochs": 2}}, "train: a synthetic study does not use it"),
        ({"synthetic": {}, "sampler": {"name": "spektral"}}, "sampler: unknown sampler 'spektral'; did you mean"),
        ({"synthetic": {}, "sampler": {"name": "spectral", "kk": 2}}, "sampler.kk: unknown key; did you mean 'k'?"),
        ({"synthetic": {}, "samplr": {}}, "samplr: unknown key; did you mean 'sampler'?"),
    ],
)
def test_validate_names_the_key_of_a_mistake(content: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(SyntheticExperiment, content, "file")
    assert str(caught.value).startswith(f"file: {expected}")
    assert "\n" not in str(caught.value)
