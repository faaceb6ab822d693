"""What --eval-only reads, refuses and writes; without Ray."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.cluster.capacity import Concurrency, TrialResources
from mbcl.orchestration.console import Console
from mbcl.orchestration.results_folder import layout
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.results_folder.reevaluation import commit, reopen_for_evaluation
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.record import read_study, write_study

OLD, NEW = {"retrieval/u2v/top1": 0.25}, {"retrieval/u2v/top1": 0.75}
DOT = {"similarity": "dot"}


@pytest.fixture
def finished(space_file, tmp_path):
    """A study of two finished trials that are made up: its store, its space and its trials."""
    file = read_space(space_file())
    trials = expand(file)
    store = LocalStore(tmp_path / "results" / "study")
    study = layout.new_study(file, trials, "study")
    for spec in trials.specs:
        record = study.trials[spec.trial_id]
        record.status, record.metrics = "finished", {"train/loss": 2.0, **OLD}
        folder = store.child(f"trials/{spec.trial_id}")
        folder.write_bytes("config.yaml", yaml.safe_dump(spec.experiment.model_dump(mode="json")).encode())
        folder.write_bytes("evaluation.json", json.dumps(OLD).encode())
    layout.create(store, file, trials, study)
    return store, file, trials


def commit_all(store, waiting):
    """Make what waits for each trial the study's."""
    study = read_study(store)
    for key in study.trials:
        waiting.child(key).write_bytes("evaluation.json", json.dumps(NEW).encode())
    keys = dict.fromkeys(study.trials)
    commit(store, study, {key: key for key in keys}, dict.fromkeys(keys, DOT), dict.fromkeys(keys, NEW), waiting.child)


def measured(store):
    """By trial, what the record and the file of the evaluation say."""
    record = read_study(store).trials
    files = [json.loads(store.read_bytes(f"trials/{key}/evaluation.json")) for key in record]
    return [{key: value for key, value in trial.metrics.items() if key in OLD} for trial in record.values()], files


def test_all_new_metrics_become_the_studys(finished, tmp_path):
    store, _, trials = finished
    commit_all(store, LocalStore(tmp_path / "waiting"))
    assert measured(store) == ([NEW, NEW], [NEW, NEW])
    study = read_study(store)
    assert [trial.evaluation for trial in study.trials.values()] == [DOT, DOT]
    assert all(trial.metrics["train/loss"] == 2.0 for trial in study.trials.values())
    noted = yaml.safe_load(store.read_bytes("space.yaml"))["evaluation"]["evaluated"]
    assert noted == [{"settings": DOT, "trials": list(trials.by_id)}]


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_between_two_writes_leaves_the_earlier_metrics_and_a_repeat_makes_all_new(finished, tmp_path, writes):
    store, _, _ = finished

    class Killed(LocalStore):
        left = writes

        def write_bytes(self, name, content):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().write_bytes(name, content)

    with pytest.raises(KeyboardInterrupt):
        commit_all(Killed(store.folder), LocalStore(tmp_path / "waiting"))
    assert measured(store)[0] == [OLD, OLD]
    assert [trial.evaluation for trial in read_study(store).trials.values()] == [{}, {}]
    commit_all(store, LocalStore(tmp_path / "waiting"))
    assert measured(store) == ([NEW, NEW], [NEW, NEW])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "holds no space.yaml"),
        (b"given: [", "space.yaml: damaged: "),
        (b"", "expected a mapping"),
        (b"\xff", "space.yaml: damaged: "),
    ],
)
def test_a_damaged_space_is_refused_before_anything_is_measured_or_written(finished, tmp_path, damage, said):
    store, file, trials = finished
    store.delete("space.yaml")
    if damage is not None:
        store.write_bytes("space.yaml", damage)
    with pytest.raises(ConfigError, match=f"{said}.*put a copy of it back first"):
        reopen_for_evaluation(store, file, trials)
    with pytest.raises(ConfigError, match=said):  # it may be damaged meanwhile
        commit_all(store, LocalStore(tmp_path / "waiting"))
    assert measured(store) == ([OLD, OLD], [OLD, OLD])


def test_an_evaluation_that_is_gone_before_the_end_changes_nothing(finished, tmp_path):
    store, _, trials = finished
    study, waiting = read_study(store), LocalStore(tmp_path / "waiting")
    waiting.child(next(iter(trials.by_id))).write_bytes("evaluation.json", b"{}")
    keys = {key: key for key in study.trials}
    with pytest.raises(FileNotFoundError):
        commit(store, study, keys, {}, dict.fromkeys(keys, NEW), waiting.child)
    assert study == read_study(store)
    assert measured(store) == ([OLD, OLD], [OLD, OLD])


@pytest.mark.parametrize("damage", [None, b"", b"data: {name", b"\xff\xfe", b"- 1"])
def test_where_a_configuration_is_damaged_the_checkpoint_tells(finished, damage):
    store, file, trials = finished
    first, second = trials.by_id
    train(trials.by_id[first].experiment, world=World(), store=store.child(f"trials/{first}"))
    for key in (first, second):
        store.delete(f"trials/{key}/config.yaml")
        if damage is not None:
            store.write_bytes(f"trials/{key}/config.yaml", damage)
    _, chosen, _, notes = reopen_for_evaluation(store, file, trials)
    assert list(chosen) == [first, second], "an evaluation without a checkpoint fails by itself"
    assert notes[0].startswith(f"{first}: {store.uri}/trials/{first}/config.yaml ")
    assert notes[0].endswith("; its checkpoint epoch_000002 tells what it was")
    assert notes[1].endswith("no whole checkpoint tells what it was")
    other = expand(read_space(file.path, ["experiment.train.epochs=3"]))
    with pytest.raises(ConfigError, match=f"trial {first} .* made from another space \\(different: train\\)"):
        reopen_for_evaluation(store, file, other)


def test_a_study_without_configurations_and_checkpoints_is_refused(finished):
    """Such as the published ones, of which rows and tables are kept."""
    store, file, trials = finished
    for key in trials.by_id:
        store.delete(f"trials/{key}/config.yaml")
    with pytest.raises(ConfigError, match="neither a readable config.yaml nor a whole checkpoint.*config.yaml is gone"):
        reopen_for_evaluation(store, file, trials)


def test_a_study_in_order_has_no_notes(finished):
    store, file, trials = finished
    study, chosen, _, notes = reopen_for_evaluation(store, file, trials)
    assert (list(chosen), notes) == (list(study.trials), [])
    study.trials[next(iter(study.trials))].status = "failed"
    write_study(store, study)
    assert len(reopen_for_evaluation(store, file, trials)[1]) == 1


def test_a_dry_run_says_how_many_are_evaluated_and_nothing_of_the_search(finished, space_file, tmp_path, capsys):
    import run_ray

    store, _, trials = finished
    study = read_study(store)
    next(iter(study.trials.values())).status = "failed"
    write_study(store, study)
    space = space_file({"scheduler": {"name": "asha"}})
    arguments = ["--space", str(space), "--results-dir", str(tmp_path / "results"), "--eval-only", "--dry-run"]
    assert run_ray.main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 finished trial to evaluate again, \d at a time", out)
    assert "scheduler:" not in out
    console = Console(read_space(space).space, store, OpenedStudy(study, trials, {}), quiet=False)
    console.print_header(1, TrialResources(1, 1.0, 0, 1), Concurrency(1, "2 CPUs"), (), evaluation_alone=True)
    out = capsys.readouterr().out
    assert re.match(r"1 finished trial to evaluate again; \d at a time", out.splitlines()[1])
    assert "scheduler:" not in out
