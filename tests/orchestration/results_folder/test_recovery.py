"""What --resume does about records and checkpoints that are damaged or gone; without Ray."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.engine.metrics_log import read_rows
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder import layout, recovery
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.record import write_study


@pytest.fixture
def begun(space_file, tmp_path):
    """A study of two trials of which nothing is done: its store, its space and its trials."""
    file = read_space(space_file())
    trials = expand(file)
    store = LocalStore(tmp_path / "results" / "study")
    layout.create(store, file, trials, layout.new_study(file, trials, "study"))
    return store, file, trials


@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "gone", "other fields"])
def test_a_damaged_record_is_made_again(begun, damage):
    store, file, trials = begun
    path = store.folder / "study.json"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": content[:-20], "empty": b"", "binary": b"\xff\xfe", "other fields": b'{"format": 1}'}[damage]
        )
    study, _, notes = recovery.recover(store, file, trials, "study")
    assert study.unfinished() == list(trials.by_id)
    assert "the record is made again, and every trial goes on from what its folder holds" in notes[0]
    assert "study.json" in notes[0]
    recovery.keep_damaged(store)
    assert store.exists(recovery.DAMAGED_FILE) == (damage != "gone")
    assert not (damage != "gone" and store.read_bytes(recovery.DAMAGED_FILE) == content)


def test_a_study_with_other_defaults_of_an_earlier_version_is_refused(begun):
    """A new key of the experiment, such as ``evaluation.draws``, changes the digests of the same space."""
    store, file, trials = begun
    study = layout.new_study(file, trials, "study").model_copy(update={"space_digest": "0" * 16})
    write_study(store, study)
    with pytest.raises(ConfigError, match="another space: a default has changed with the version of mbcl; --name"):
        recovery.recover(store, file, trials, "study")


def test_where_space_yaml_is_lost_too_the_folders_of_the_trials_tell(begun):
    store, file, trials = begun
    (store.folder / "study.json").write_bytes(b"")
    (store.folder / "space.yaml").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"damaged: .*; without --resume a new study starts there"):
        recovery.recover(store, file, trials, "study")
    (store.folder / "trials" / list(trials.by_id)[1]).mkdir(parents=True)
    assert len(recovery.recover(store, file, trials, "study")[0].trials) == 2
    (store.folder / "trials" / "007-of-another").mkdir()
    with pytest.raises(ConfigError, match="its trials are not those of"):
        recovery.recover(store, file, trials, "study")


def test_another_evaluation_survives_the_record(begun):
    store, file, trials = begun
    first = next(iter(trials.by_id))
    space = yaml.safe_load((store.folder / "space.yaml").read_text())
    space["evaluation"] = {"evaluated": [{"settings": {"similarity": "dot"}, "trials": [first]}]}
    (store.folder / "space.yaml").write_text(yaml.safe_dump(space))
    (store.folder / "study.json").unlink()
    study, _, _ = recovery.recover(store, file, trials, "study")
    assert [record.evaluation for record in study.trials.values()] == [{"similarity": "dot"}, {}]
    asked = {key: spec.experiment.evaluation.model_dump(mode="json") for key, spec in trials.by_id.items()}
    assert recovery.notes_of(study, asked)[0].startswith("trials are evaluated as the last --eval-only asked")
    assert recovery.notes_of(study, {key: block for key, block in asked.items() if key != first}) == []


def test_the_record_of_an_adaptive_search_is_not_made_up(space_file, tmp_path):
    file = read_space(
        space_file({"space/optimizer.lr": {"loguniform": [0.01, 1.0]}, "search": {"name": "optuna", "num_samples": 4}})
    )
    store = LocalStore(tmp_path / "study")
    store.write_bytes("study.json", b"{")
    with pytest.raises(ConfigError, match=r"--resume: .*study.json: damaged: .*, and no trial has begun; --name OTHER"):
        recovery.recover(store, file, expand(file), "study")
    store.write_bytes("trials/000-0f/config.yaml", b"")
    with pytest.raises(ConfigError, match=r"goes on only from a copy of study.json. What trials measured is kept"):
        recovery.recover(store, file, expand(file), "study")


def test_temporaries_of_a_kill_go_and_nothing_else(begun):
    store, _, trials = begun
    trial = f"trials/{next(iter(trials.by_id))}"
    store.write_bytes(f"{trial}/metrics.jsonl", b"")
    kept = sorted(path for path in store.folder.rglob("*") if path.is_file())
    lost = (".study.json.0f.tmp", f"{trial}/.metrics.jsonl.0f.tmp", "baselines/.pixels-knn-0f.json.0f.tmp")
    for name in (*lost, "plots/.curves.png.0f.tmp"):
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_bytes(b"{")
    recovery.remove_temporaries(store)
    assert sorted(path for path in store.folder.rglob("*") if path.is_file()) == kept


def test_what_is_wrong_with_checkpoints_is_said(begun):
    store, _, trials = begun
    first, second = trials.by_id
    train(trials.by_id[first].experiment, world=World(), store=store.child(f"trials/{first}"))
    checkpoints = store.folder / "trials" / first / "checkpoints"
    assert recovery.notes_of_trials(store, [first, second]) == []
    state = checkpoints / "epoch_000002" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    (said,) = recovery.notes_of_trials(store, [first, second])
    assert said == f"{first}: {state}: does not match its manifest; the trial goes on from epoch_000001"
    shutil.rmtree(checkpoints / "epoch_000002")
    (said,) = recovery.notes_of_trials(store, [first, second])
    assert said.endswith("the checkpoint of epoch 2 is gone; the trial goes on from epoch_000001")
    (checkpoints / "epoch_000001" / "meta.json").write_text(json.dumps({}))
    (said,) = recovery.notes_of_trials(store, [first, second])
    assert said.endswith("meta.json: does not match its manifest; the trial goes on from its beginning")


def test_rows_that_are_gone_are_said(begun):
    store, _, trials = begun
    first, second = trials.by_id
    experiment, trial = trials.by_id[first].experiment, store.child(f"trials/{first}")
    train(experiment, world=World(), store=trial)
    metrics = store.folder / "trials" / first / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(lines[0])
    assert recovery.notes_of_trials(store, [first, second]) == [], "the checkpoint has the row of its own epoch"
    metrics.write_bytes(lines[1])
    (said,) = recovery.notes_of_trials(store, [first, second])
    assert said == f"{first}: {metrics}: rows are gone, the first of epoch 1; the trial goes on from epoch_000002"


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"1", b'{"epoch": "one"}', b'{"epoch": 1, "val'])
def test_damaged_rows_are_said_and_the_training_goes_on_from_its_checkpoint(begun, damage):
    """The rows that the checkpoint has seen are kept or written again, those after it are made again."""
    store, _, trials = begun
    first, second = trials.by_id
    experiment, trial = trials.by_id[first].experiment, store.child(f"trials/{first}")
    train(experiment, world=World(), store=trial)
    before = read_rows(trial)
    metrics = store.folder / "trials" / first / "metrics.jsonl"
    metrics.write_bytes(damage + b"\n" + metrics.read_bytes().splitlines()[1] + b"\n")
    shutil.rmtree(store.folder / "trials" / first / "checkpoints" / "epoch_000002")
    gone, damaged = recovery.notes_of_trials(store, [first, second])
    assert gone.endswith("the checkpoint of epoch 2 is gone; the trial goes on from epoch_000001")
    assert damaged == f"{first}: {metrics}: line 1 is damaged and left out; the trial goes on from epoch_000001"
    train(experiment, world=World(), store=trial)
    after, losses = read_rows(trial), ("epoch", "train/loss", "val/retrieval/top1")
    assert [[row[key] for key in losses] for row in after] == [[row[key] for key in losses] for row in before]
    assert recovery.notes_of_trials(store, [first, second]) == []


def test_damaged_rows_end_neither_the_race_nor_its_reports(space_file, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from mbcl.orchestration import live
    from mbcl.orchestration.scheduling import early_stopping
    from mbcl.orchestration.trial import metrics_reporter

    file = read_space(space_file({"scheduler": {"name": "asha"}}))
    trials, metric = expand(file), file.space.search.metric
    store, study = LocalStore(tmp_path), layout.new_study(file, trials, "study")
    first = next(iter(trials.by_id))
    trial = store.child(f"trials/{first}")
    rows = [json.dumps({"epoch": epoch, metric: 0.5}).encode() for epoch in (1, 2, 3)]

    def write(*lines):
        trial.write_bytes("metrics.jsonl", b"\n".join(lines))

    reported = []
    monkeypatch.setattr(metrics_reporter.ray.tune, "report", reported.append)
    write(rows[0], b"1", b"\xff")
    assert early_stopping.build_early_stopping(file.space, study, trials.by_id, store) is not None
    assert live.last_row(store, first) is None
    with metrics_reporter.report_to_tune(trial, metric, after=0):
        write(rows[0], b"\xff", rows[1], rows[2])
    assert [found[metrics_reporter.EPOCH] for found in reported] == [1, 2, 3]
    assert live.last_row(store, first)["epoch"] == 3


@pytest.mark.parametrize("judged", [False, True])
def test_a_decision_that_a_kill_cut_off_is_made_on_resume(space_file, tmp_path, monkeypatch, judged):
    """The second setting is below the first at a rung; undisturbed it is stopped there."""
    pytest.importorskip("ray")
    from mbcl.orchestration.scheduling import early_stopping
    from mbcl.orchestration.scheduling.trial_queue import TrialQueue
    from mbcl.orchestration.trial import metrics_reporter

    changes = {
        "scheduler": {"name": "asha", "grace_period": 2, "reduction_factor": 2},
        "experiment/train/epochs": 8,
        "baseline": {},
    }
    file = read_space(space_file(changes))
    trials, metric = expand(file), file.space.search.metric
    store, study = LocalStore(tmp_path), layout.new_study(file, trials, "study")
    better, worse = trials.by_id
    study.trials[better].status = "finished"
    study.trials[worse].status, study.trials[worse].judged = "running", 2 if judged else 1
    for key, value, epochs in ((better, 0.5, 8), (worse, 0.1, 3)):
        rows = [json.dumps({"epoch": epoch, metric: value}) for epoch in range(1, epochs + 1)]
        store.child(f"trials/{key}").write_bytes("metrics.jsonl", "\n".join(rows).encode())
    race = early_stopping.build_early_stopping(file.space, study, trials.by_id, store)
    course = TrialQueue(study, study.unfinished(), concurrency=1, rule=race)
    assert course.next_trial() == worse
    reported = []
    monkeypatch.setattr(metrics_reporter.ray.tune, "report", reported.append)
    with metrics_reporter.report_to_tune(store.child(f"trials/{worse}"), metric, after=study.trials[worse].judged):
        pass
    stops = [course.on_result(worse, row[metrics_reporter.EPOCH], row[metrics_reporter.VALUE]) for row in reported]
    assert stops == ([False] if judged else [True, True]), "a rung that was passed is not judged again"
