"""Studies on pairs: what the data were made from is recorded, and a study goes on with the same data only."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.trial.preflight import data_key
from mbcl.study.record import read_study

from .helpers import assert_same_metrics, run_study, train_without_ray

pytest.importorskip("ray")


@pytest.fixture
def arrays(tmp_path):
    """A file of 300 pairs with a common cause, and the changes that make the small space a study of it."""
    path = tmp_path / "made.npz"

    def write(seed: int) -> None:
        generator = np.random.default_rng(seed)
        cause = generator.normal(size=(300, 5))
        np.savez(path, **{f"x{side}": cause @ generator.normal(size=(5, 8 + side)) for side in (1, 2)})

    write(0)
    changes = {
        "experiment/data": {"name": "pairs", "dir": str(path), "dropout": 0.1},
        "experiment/encoder": {"name": "pair_mlp", "width": 16, "dim": 8},
        "experiment/projector": {"layers": 0},
        "experiment/objective": {"name": "clip", "temperature": 0.2},
        "experiment/optimizer": {"name": "adamw", "lr": 0.01},
        "experiment/schedule": {"warmup_epochs": 0, "scale_lr": "none"},
        "space/sampler": {"grid": [{"name": "shuffle"}, {"name": "refined", "pool": 64}]},
        "control": "equal_passes",
    }
    return write, changes


def test_study_of_other_pairs_is_not_resumed(arrays, space_file, tmp_path, capsys):
    import run_ray

    write, changes = arrays
    path = space_file(changes)
    file = read_space(path)
    trials = expand(file)
    study = layout.new_study(file, trials, "study")
    store = LocalStore(tmp_path / "out" / "study")
    name = data_key(trials.specs[0].experiment)
    options = ["--space", str(path), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(options) == 0
    study.sources = {name: {"arrays": "0" * 16}}
    layout.create(store, file, trials, study)
    capsys.readouterr()
    assert run_ray.main([*options, "--resume"]) == 2
    message = "experiment.data: pairs is not what the study began with: arrays was 0000000000000000, now "
    assert message in capsys.readouterr().err
    assert read_study(store).sources == study.sources


def test_study_of_other_pairs_is_not_resumed_where_only_chosen_values_are_to_be_measured(
    arrays, space_file, tmp_path, capsys
):
    """All candidates have ended, so no trial of the record is left to run, and the confirmations are not drawn yet."""
    import run_ray

    write, changes = arrays
    changes |= {
        "nuisance": {"keys": ["objective.temperature"], "seeds": [100]},
        "space/objective.temperature": {"grid": [0.1, 0.2]},
    }
    path = space_file(changes)
    file = read_space(path)
    trials = expand(file)
    study = layout.new_study(file, trials, "study")
    for number, trial in enumerate(study.trials.values()):
        trial.status, trial.metrics = "finished", {study.metric: 0.5 + 0.01 * number}
    study.sources = {data_key(trials.specs[0].experiment): {"arrays": "0" * 16}}
    layout.create(LocalStore(tmp_path / "out" / "study"), file, trials, study)
    options = ["--space", str(path), "--results-dir", str(tmp_path / "out"), "--dry-run", "--resume"]
    assert run_ray.main(options) == 2
    assert "experiment.data: pairs is not what the study began with: arrays was 0000" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_study_of_pairs_equals_training_without_ray_and_keeps_its_data(arrays, space_file, tmp_path):
    write, changes = arrays
    path = space_file(changes)
    result = run_study(path, tmp_path / "out", "--quiet")
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "out" / "study"
    study = json.loads((folder / "study.json").read_text())
    assert len(study["trials"]) == 3, "the control of equal passes, too"
    assert [list(sources) for sources in study["sources"].values()] == [["arrays"]]
    for spec in expand(read_space(path)).specs:
        trial = study["trials"][spec.trial_id]
        assert_same_metrics(trial["metrics"], train_without_ray(spec.experiment, tmp_path / spec.trial_id))
    (trial,) = (trial for trial in study["trials"].values() if trial["sampler"] == "refined")
    trial["status"] = "pending"
    (folder / "study.json").write_text(json.dumps(study))
    write(1)
    again = run_study(path, tmp_path / "out", "--resume")
    assert again.returncode == 2
    assert "pairs is not what the study began with: arrays was " in again.stderr
    write(0)
    again = run_study(path, tmp_path / "out", "--resume", "--quiet")
    assert again.returncode == 0, again.stdout + again.stderr
