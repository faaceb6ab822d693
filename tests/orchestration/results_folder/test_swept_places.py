"""Data in places that a space sweeps: a trial keeps the content that it began with."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml

import run_ray
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.trial.preflight import check_data, distinct_experiments
from mbcl.study.record import read_study, write_study

PAIRS = {
    "experiment/encoder": {"name": "pair_mlp", "width": 16, "dim": 8},
    "experiment/projector": {"layers": 0},
    "experiment/objective": {"name": "clip", "temperature": 0.2},
    "space/sampler": None,
    "baseline": None,
    "seeds": [0],
}


@pytest.fixture(params=["key", "block", "nuisance", "ids"])
def kind(request):
    """How a space sweeps places: by their key, as whole blocks of data, as a nuisance key, or as files of ids."""
    return request.param


@pytest.fixture
def places(tmp_path, kind):
    """Two files of pairs, or of ids of digits, with other content each."""
    files = [tmp_path / f"{name}.{'npy' if kind == 'ids' else 'npz'}" for name in "ab"]
    for number, file in enumerate(files):
        generator = np.random.default_rng(number)
        if kind == "ids":
            np.save(file, generator.integers(100, size=300))
        else:
            np.savez(file, **{side: generator.normal(size=(300, 8)) for side in ("x1", "x2")})
    return files


@pytest.fixture
def grid_of(kind, space_file):
    """Writes the space that sweeps places."""

    def write(*files):
        if kind == "ids":
            grid = {"grid": [str(file) for file in files]}
            return space_file({"space/sampler": None, "baseline": None, "space/data.apart": grid})
        blocks = [{"name": "pairs", "dir": str(file)} for file in files]
        changes = {**PAIRS, "experiment/data": {"name": "pairs", "dir": str(files[0])}}
        if kind == "block":
            return space_file({**changes, "space/data": {"grid": blocks}})
        changes["space/data.dir"] = {"grid": [str(file) for file in files]}
        if kind == "nuisance":
            changes["nuisance"] = {"keys": ["data.dir"], "seeds": [100]}
        return space_file(changes)

    return write


@pytest.fixture
def finished(grid_of, places, tmp_path):
    """A study whose trials are said to have finished, and its results folder."""
    file = read_space(grid_of(*places))
    trials = expand(file)
    study = OpenedStudy(layout.new_study(file, trials, "study"), trials, trials.by_id)
    study.take_data(check_data(distinct_experiments(trials.specs), "space.yaml"))
    store = LocalStore(tmp_path / "results" / "study")
    for spec in trials.specs:
        study.record.trials[spec.trial_id].status = "finished"
        study.record.trials[spec.trial_id].stage = ""  # tuned candidates are not evaluated
        config = yaml.safe_dump(spec.experiment.resolved()).encode()
        store.child(f"trials/{spec.trial_id}").write_bytes("config.yaml", config)
    layout.create(store, file, trials, study.record)
    return store


def run(space, store, option):
    return run_ray.main(
        ["--space", str(space), "--results-dir", str(store.folder.parent), "--name", "study", option, "--dry-run"]
    )


def test_an_evaluation_refuses_the_data_of_another_setting(finished, grid_of, places, kind, capsys):
    first, second = (str(place) for place in places)
    assert run(grid_of(first, second), finished, "--eval-only") == 0
    capsys.readouterr()
    assert run(grid_of(second, first), finished, "--eval-only") == 2
    error = capsys.readouterr().err
    study = read_study(finished)
    record = {**study.data, **{key: list(each.values()) for key, each in study.sources.items()}}
    digests = [next(value[0] for key, value in record.items() if place in key) for place in (first, second)]
    trial, place = next(iter(study.trials)), "data.apart" if kind == "ids" else "data.dir"
    was, now = f"trial {trial}, with {place} {first}, began with: ", f" with {place} {second} "
    assert was in error
    assert now in error
    assert re.search(rf"was {digests[0]}, (it is|now) {digests[1]}", error)


def test_an_evaluation_takes_data_that_have_moved(finished, grid_of, places, tmp_path):
    moved = [place.rename(tmp_path / f"moved-{place.name}") for place in places]
    assert run(grid_of(*moved), finished, "--eval-only") == 0
    moved[0].rename(places[1])  # now the contents are swapped, and so is the grid
    moved[1].rename(places[0])
    assert run(grid_of(places[1], places[0]), finished, "--eval-only") == 0


def test_a_resumed_study_refuses_swapped_contents(finished, grid_of, places, tmp_path, capsys):
    study = read_study(finished)
    for record in study.trials.values():
        record.status = "pending"
    write_study(finished, study)
    space = grid_of(*places)
    assert run(space, finished, "--resume") == 0
    places[0].rename(tmp_path / "c")
    places[1].rename(places[0])
    (tmp_path / "c").rename(places[1])
    capsys.readouterr()
    assert run(space, finished, "--resume") == 2
    error = capsys.readouterr().err
    assert re.search(r"(pairs|digits) with data.(dir|apart) \S+ (is|are) not (what|those that) trial ", error), error


def test_what_samples_were_made_from_is_known_of_each_place(finished, grid_of, places):
    """A resume that lacks the trials of one place alone compares them with that place."""
    study = read_study(finished)
    next(iter(study.trials.values())).status = "pending"
    write_study(finished, study)
    assert run(grid_of(*places), finished, "--resume") == 0
