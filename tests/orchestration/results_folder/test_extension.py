"""``--extend`` keeps what a study has and adds what its space has more; without Ray."""

from __future__ import annotations

import json

import pytest

import run_ray
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder import layout, recovery
from mbcl.orchestration.results_folder.opened_study import open_study
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import SpaceFile, read_space
from mbcl.orchestration.study_options import StudyOptions
from mbcl.study.record import StudyRecord, write_study

LARGER = {
    "seeds": [0, 1, 2],
    "space/sampler": {
        "grid": [{"name": "spectral", "k": 2}, {"name": "shuffle"}, {"name": "spectral", "k": 4}, {"name": "osgd"}]
    },
}
"""The small space with two more seeds, and two more settings, one of them before the others."""
LARGER["space/sampler"]["grid"][-1] |= {"k": 4, "q": 2}


@pytest.fixture
def finished(space_file, tmp_path) -> tuple[LocalStore, StudyRecord]:
    """A finished study of two trials."""
    file = read_space(space_file())
    trials, store = expand(file), LocalStore(tmp_path / "out" / "study")
    study = layout.new_study(file, trials, "study")
    layout.create(store, file, trials, study)
    for number, record in enumerate(study.trials.values()):
        record.status, record.metrics = "finished", {"retrieval/mrr": float(number)}
    write_study(store, study)
    return store, study


def extended(store: LocalStore, file: SpaceFile) -> tuple[StudyRecord, list[str]]:
    options = StudyOptions(file.path, results_dir=str(store.folder.parent), extend=True)
    opened = open_study(options, file, expand(file), store)
    return opened.record, list(opened.todo)


def test_a_study_takes_further_seeds_and_settings(space_file, finished):
    store, before = finished
    file = read_space(space_file(LARGER))
    with pytest.raises(ConfigError, match="another space: .* --extend adds further seeds"):
        layout.load(store, file, expand(file))
    study, todo = extended(store, file)
    assert len(study.trials) == 12
    assert len(todo) == 10
    for key, record in before.trials.items():
        assert study.trials[key].metrics == record.metrics
        assert study.trials[key].parameters == record.parameters
        assert key not in todo
    assert [record.ordinal for record in study.trials.values()] == list(range(12))
    assert [[record.seed for record in records] for records in study.settings().values()] == [[0, 1, 2]] * 4
    assert study.id == before.id

    layout.create(store, file, expand(file), study)
    again, trials = layout.load(store, file, expand(file))
    assert list(again.trials) == [spec.trial_id for spec in trials.specs], "--resume goes on with the larger space"
    assert {key: spec.experiment.seed for key, spec in trials.by_id.items()} == {
        key: record.seed for key, record in again.trials.items()
    }
    smaller = read_space(space_file())
    with pytest.raises(ConfigError, match="--extend: .* lacks 10 of the study's 12 trials"):
        extended(store, smaller)


def test_a_lost_record_of_an_extended_study_is_made_again(space_file, finished):
    store, before = finished
    file = read_space(space_file(LARGER))
    study, _ = extended(store, file)
    trials = layout.with_known_ids(expand(file), before.trials)
    layout.create(store, file, trials, study)
    (store.folder / "study.json").unlink()
    rebuilt, _, notes = recovery.recover(store, file, expand(file), "study")
    assert list(rebuilt.trials) == list(study.trials)
    assert "the record is made again" in notes[0]


def test_further_draws_keep_the_first_ones(space_file, tmp_path):
    changes = {"space/optimizer.lr": {"loguniform": [0.01, 1.0]}, "search": {"num_samples": 2}}
    file = read_space(space_file(changes))
    trials, store = expand(file), LocalStore(tmp_path / "out" / "study")
    study = layout.new_study(file, trials, "study")
    layout.create(store, file, trials, study)
    more = read_space(space_file(changes | {"search": {"num_samples": 5}}))
    larger, todo = extended(store, more)
    assert set(study.trials) < set(larger.trials)
    assert len(todo) == 10


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seeds": [1, 2]}, "lacks 2 of the study's 2 trials, the first with sampler = .*, seed 0.* of its trials$"),
        (
            {"seeds": [0, 1], "experiment/train/epochs": 7},
            "lacks 2 .* trials; experiment.train.epochs was .*, now it is 7: .* --set is given again",
        ),
        ({"baseline": {"sampler": "spectral"}}, "baseline was .* it must stay"),
        ({"equivalence": 0.5}, "equivalence was 0.01, now it is 0.5"),
        ({"search": {"metric": "val/retrieval/top1"}}, "search.metric was"),
    ],
)
def test_an_extension_keeps_the_question(space_file, finished, changes, words):
    store, _ = finished
    with pytest.raises(ConfigError, match=words):
        extended(store, read_space(space_file(changes)))


@pytest.mark.parametrize(
    "option, draws, views, refused",
    [
        ("extend", [0.5, 0.6], None, True),
        ("resume", [0.5, 0.6], None, True),
        ("extend", [0.5, 0.6], 3, False),
        ("extend", [0.5], None, False),
    ],
    ids=["extended", "resumed", "of draws that share views", "of one draw"],
)
def test_trials_measured_on_other_draws_get_no_company(space_file, finished, capsys, option, draws, views, refused):
    """Earlier evaluations had two views of their own for each draw; they do not tell how many views they had."""
    store, study = finished
    first, last = study.trials
    asked = {"settings": {"draws": 2}} | ({"views": views} if views else {})
    content = {"asked": asked, "metrics": {}, "draws": {"retrieval/mrr": draws}, "pieces": []}
    store.child(f"trials/{first}").write_bytes("evaluation.json", json.dumps(content).encode())
    if option == "resume":
        study.trials[last].status = "pending"
        write_study(store, study)
    space = space_file(LARGER if option == "extend" else {})
    folder = ["--results-dir", str(store.folder.parent), "--name", "study"]
    assert run_ray.main(["--space", str(space), *folder, f"--{option}", "--dry-run"]) == (2 if refused else 0)
    error = capsys.readouterr().err
    assert (f"--{option}: trial {first} of {store.uri} was evaluated on draws of two views each" in error) == refused
    if refused:  # what is finished may stay as it is
        study.trials[last].status = "finished"
        write_study(store, study)
        assert run_ray.main(["--space", str(space_file()), *folder, "--resume", "--dry-run"]) == 0


def test_an_extension_needs_a_study(space_file, tmp_path):
    with pytest.raises(ConfigError, match="^--extend: .* holds no study.json; without --extend a new study starts"):
        extended(LocalStore(tmp_path / "out" / "none"), read_space(space_file()))


@pytest.mark.parametrize("key, block", [("data.apart", False), ("data", True)])
def test_settings_that_differ_in_a_place_keep_their_own_trials(space_file, tmp_path, key, block):
    def space(*files: str) -> SpaceFile:
        values = [{"apart": file} if block else file for file in files]
        changes = {"space": {key: {"grid": values}}, "baseline": None, "seeds": [0]}
        return read_space(space_file(changes))

    file = space("patients.npy", "scanners.npy")
    trials, store = expand(file), LocalStore(tmp_path / "out" / "study")
    study = layout.new_study(file, trials, "study")
    layout.create(store, file, trials, study)
    before = {key: str(record.parameters) for key, record in study.trials.items()}
    swapped = space("scanners.npy", "patients.npy")
    with pytest.raises(ConfigError, match="another space"):
        layout.load(store, swapped, expand(swapped))
    for larger in (swapped, space("visits.npy", "patients.npy", "scanners.npy")):
        found, _ = extended(store, larger)
        assert {key: str(found.trials[key].parameters) for key in before} == before


def test_an_extension_with_nothing_to_run_rewrites_nothing_of_the_study(space_file, finished, tmp_path, capsys):
    import run_ray

    store, _ = finished
    files = {name: store.read_bytes(name) for name in ("space.yaml", "study.json")}
    arguments = ["--space", str(space_file({"question": "Another?"})), "--results-dir", str(tmp_path / "out")]
    changes = ["--set", "experiment.data.dir=/other", "--set", "experiment.train.threads=1"]
    assert run_ray.main([*arguments, "--name", store.folder.name, "--extend", *changes]) == 0
    assert {name: store.read_bytes(name) for name in files} == files
    assert "nothing is to run; the study stays as it is" in capsys.readouterr().out


def test_a_study_that_takes_draws_is_a_search(space_file, tmp_path):
    def space(domain: dict[str, object], num_samples: int) -> SpaceFile:
        changes = {"space": {"optimizer.lr": domain}, "baseline": None, "search": {"num_samples": num_samples}}
        return read_space(space_file(changes))

    file = space({"grid": [0.5]}, 1)
    trials, store = expand(file), LocalStore(tmp_path / "out" / "study")
    study = layout.new_study(file, trials, "study")
    layout.create(store, file, trials, study)
    assert not study.searched
    larger, _ = extended(store, space({"choice": [0.5, 0.25]}, 8))
    assert larger.searched, "its best setting is chosen by the runs that measure it"
