"""A training that was cut anywhere ends as the one that was not, to the last bit."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time

import gloo
import pytest
import torch
import yaml
from engine import runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import wait_for

from mbcl.distributed.collectives import World
from mbcl.engine import build, train, trainer
from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import CheckpointError, StorageError, TrainingError
from mbcl.io.store import LocalStore, open_store

STEPS = {"epochs": 2, "batch_size": 16, "checkpoint_steps": 4}
"""11 steps an epoch."""
SETTINGS = {
    "shuffle": {},
    "osgd": {"sampler": "osgd"},
    "spectral": {"sampler": "spectral"},
    "sogclr": {"sampler": "osgd", "objective": {"name": "sogclr"}},
    "cached": {"sampler": "spectral", "embeddings": {"source": "cached", "batch_size": 64}},
    "chunks": {"train": {"accumulation": {"mode": "cached", "chunk_size": 8}}},
    "plain": {"train": {"accumulation": {"mode": "plain", "chunk_size": 8}}, "objective": {"name": "sog"}},
    "bf16": {"train": {"precision": "bf16"}},
    "fp16": {"train": {"precision": "fp16"}, "optimizer": {"name": "adamw"}, "schedule": {"scale_lr": "none"}},
}


def setting(name: str, **train_changes):
    changes = {**SETTINGS[name]}
    train_section = {**STEPS, **changes.pop("train", {}), **train_changes}
    return runs.experiment(changes.pop("sampler", "shuffle"), **changes, train=train_section)


def state_of(folder) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint but the wall times."""
    state = checkpoints.latest(LocalStore(folder)).state
    found = {f"{part}.{key}": x for part in ("model", "objective", "embeddings") for key, x in state[part].items()}
    for index, buffers in state["optimizer"]["state"].items():
        found |= {f"optimizer.{index}.{key}": x for key, x in buffers.items()}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Trained once a setting: the folder and the rows."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = folder, runs.run(World(), folder, setting(name))[2]
        return done[name]

    return get


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_same_to_the_last_bit(undisturbed, tmp_path, name):
    """Cut four times: before the first checkpoint, within an epoch, after one, and within the last."""
    whole, rows = undisturbed(name)
    for cut in ({"after_step": 3}, {"after_step": 9}, {"after_epoch": 1}, {"after_step": 11 + 5}):
        runs.interrupt(tmp_path, setting(name), **cut)
    losses, _, _ = runs.run(World(), tmp_path, setting(name))
    assert len(losses) == 11 - 4, "from the checkpoint within the second epoch"
    assert runs.equal(state_of(tmp_path), state_of(whole))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2], "no row is lost or doubled"
    for line, row in zip(lines, rows, strict=True):
        for key in row:
            assert key.startswith("time/") or key == "plan/seconds" or line[key] == row[key], key


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 21), min_size=1, max_size=4))
def test_cut_several_times_anywhere(undisturbed, tmp_path_factory, cuts):
    whole, _ = undisturbed("sogclr")
    folder = tmp_path_factory.mktemp("cuts")
    for cut in cuts:
        try:
            runs.interrupt(folder, setting("sogclr"), after_step=cut)
        except AssertionError:
            break  # it was past that step already, and ended
    runs.run(World(), folder, setting("sogclr"))
    assert runs.equal(state_of(folder), state_of(whole))


def test_a_cut_within_an_epoch_goes_on_at_the_last_checkpoint_within_it(tmp_path):
    content = setting("osgd")
    runs.interrupt(tmp_path, content, after_step=11 + 9)
    assert checkpoints.names(LocalStore(tmp_path)) == [
        "epoch_000001",
        "epoch_000001_step_00000004",
        "epoch_000001_step_00000008",
    ]
    losses, _, rows = runs.run(World(), tmp_path, content)
    assert len(losses) == 3, "steps 8 to 10 of the second epoch"
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000001", "epoch_000002"]
    assert rows[0]["plan/coverage"] > 11 * 16 / 180 / 2, "what was visited before the cut counts"


def test_a_damaged_checkpoint_is_passed_over_and_made_again(undisturbed, tmp_path, caplog):
    whole, _ = undisturbed("sogclr")
    runs.interrupt(tmp_path, setting("sogclr"), after_step=11 + 9)
    for name in ("epoch_000001_step_00000008", "epoch_000001_step_00000004"):
        state = tmp_path / "checkpoints" / name / "state.pt"
        state.write_bytes(state.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        losses, _, _ = runs.run(World(), tmp_path, setting("sogclr"))
    assert len(losses) == 11
    assert "epoch_000001_step_00000008" in caplog.text
    assert runs.equal(state_of(tmp_path), state_of(whole))


def test_newer_checkpoints_that_were_damaged_do_not_displace_new_ones(tmp_path):
    """Going back to epoch 1 with a broken epoch 2 on disk: checkpoints within epoch 2 must stay."""
    content = setting("shuffle", epochs=3)
    runs.interrupt(tmp_path, content, after_epoch=2)
    state = tmp_path / "checkpoints" / "epoch_000002" / "state.pt"
    state.write_bytes(b"")
    runs.interrupt(tmp_path, content, after_step=11 + 5)
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000001", "epoch_000001_step_00000004"]


@pytest.mark.dist
@pytest.mark.parametrize("sampler", ["osgd", "spectral"])
def test_one_worker_goes_on_with_two(tmp_path, sampler):
    """Checkpoints do not know how many workers wrote them: not that of a state per sample, nor that of a cache."""
    content = runs.exact(
        sampler,
        objective={"name": "sogclr"},
        embeddings={"source": "cached" if sampler == "spectral" else "fresh", "batch_size": 64},
        train={"checkpoint_steps": 2, "accumulation": {"mode": "cached", "chunk_size": 8}},
    )
    _, _, rows = runs.run(World(), tmp_path / "whole", content)
    runs.interrupt(tmp_path / "moved", content, after_step=5 + 3)
    ranks = gloo.run(runs.run, 2, str(tmp_path / "moved"), content)
    for losses, _, rank_rows in ranks:
        assert len(losses) == 3, "those after the second of the second epoch"
        assert rank_rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/loss"], rel=runs.EXACT)
    assert runs.largest_difference(state_of(tmp_path / "moved"), state_of(tmp_path / "whole")) < runs.EXACT


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, monkeypatch):
    scores = iter([0.25, 0.75, 0.5, 0.5])
    monkeypatch.setattr(trainer.Trainer, "_validate", lambda self: next(scores))
    content = runs.exact(train={"epochs": 4, "keep_checkpoints": 1})
    runs.run(World(), tmp_path, content)
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000002", "epoch_000004"]
    assert checkpoints.best(LocalStore(tmp_path)).epoch == 2
    assert checkpoints.latest(LocalStore(tmp_path)).epoch == 4


def test_observers_are_told_before_every_checkpoint(tmp_path):
    recorder = runs.Recorder()
    train(setting("shuffle"), world=World(), store=LocalStore(tmp_path), observers=[recorder])
    assert recorder.checkpoints == 2 * 3, "after steps 4 and 8, and at the end, of each epoch"


def test_trackers_keep_the_name_that_a_training_began_with(tmp_path):
    first = runs.experiment(train={"epochs": 1, "batch_size": 16})
    train(first, world=World(), store=LocalStore(tmp_path), run_id="003-abcd")
    assert checkpoints.latest(LocalStore(tmp_path)).meta["run_id"] == "003-abcd"
    train(first, world=World(), store=LocalStore(tmp_path), run_id="another")
    assert checkpoints.latest(LocalStore(tmp_path)).meta["run_id"] == "003-abcd"


@pytest.mark.parametrize("name", ["epoch_000001_step_00000004", "epoch_000002"])
def test_a_killed_process_goes_on_to_the_same_bits(undisturbed, tmp_path, name):
    """SIGKILL of a real process, whenever it happens to strike after a checkpoint has appeared."""
    whole, _ = undisturbed("osgd")
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump(setting("osgd").model_dump(mode="json")))
    folder = tmp_path / "run"
    line = [sys.executable, "-m", "mbcl", "train", "--config", str(config), "--out", str(folder), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, env=environment)
    wait_for(lambda: (folder / "checkpoints" / name).exists() or process.poll() is not None, every=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*line, "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert runs.equal(state_of(folder), state_of(whole))


def test_other_data_than_a_checkpoint_was_made_from_are_refused(tmp_path, monkeypatch):
    runs.interrupt(tmp_path, setting("shuffle"), after_step=6)
    load = build.load_data
    monkeypatch.setattr(
        build, "load_data", lambda data, seed: load(data.model_copy(update={"max_samples": 160}), seed=seed)
    )
    with pytest.raises(CheckpointError, match="was made from 180 training samples, but the data have 144 now"):
        runs.run(World(), tmp_path, setting("shuffle"))


def test_where_nothing_whole_is_left_it_says_that_it_starts_again(undisturbed, tmp_path, caplog):
    whole, _ = undisturbed("shuffle")
    runs.interrupt(tmp_path, setting("shuffle"), after_epoch=1)
    for state in (tmp_path / "checkpoints").glob("*/state.pt"):
        state.unlink()
    with caplog.at_level(logging.WARNING):
        losses, _, _ = runs.run(World(), tmp_path, setting("shuffle"))
    assert "no whole checkpoint is left; the training starts again" in caplog.text
    assert len(losses) == 22
    assert runs.equal(state_of(tmp_path), state_of(whole))


def _without_space(world, folder, content, full):
    """Train while rank 0 cannot write one kind of file."""
    write = LocalStore.write_bytes

    def refuse(self, name, data):
        if name == full:
            raise OSError(errno.ENOSPC, "No space left on device", f"{self.folder}/{name}")
        write(self, name, data)

    LocalStore.write_bytes = refuse
    try:
        runs.run(world, folder, content)
    except TrainingError as error:
        return str(error)
    finally:
        LocalStore.write_bytes = write
    return "no error"


@pytest.mark.dist
@pytest.mark.parametrize("full", ["config.yaml", "metrics.jsonl", "state.pt"])
def test_a_full_disk_ends_every_rank(tmp_path, full):
    """Only rank 0 writes; the others must not wait for it for ever."""
    found = gloo.run(_without_space, 2, str(tmp_path), setting("shuffle"), full)
    assert f"{full}: cannot be written: No space left on device" in found[0]
    assert found[1] == f"rank 0: {found[0]}"


def test_what_storage_behind_a_uri_does_not_take_is_told_apart(tmp_path):
    """A later attempt may meet it again in order."""
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        train(setting("shuffle"), world=World(), store=open_store(f"file://{tmp_path}"))


def _cut_and_whole(world, folder, content):
    whole = runs.run(world, f"{folder}/whole", content)
    runs.interrupt(f"{folder}/cut", content, world=world, after_step=13)
    runs.run(world, f"{folder}/cut", content)
    return whole[2]


@pytest.mark.dist
def test_ranks_whose_batch_norms_are_their_own_go_on_to_the_same_bits(tmp_path):
    """Embeddings in evaluation mode use running statistics, which each rank moves by itself between two checkpoints."""
    content = runs.experiment("osgd", embeddings={"mode": "eval"}, train={**STEPS, "sync_batchnorm": False})
    gloo.run(_cut_and_whole, 2, str(tmp_path), content)
    assert runs.equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


def test_a_damaged_line_of_metrics_is_left_out_with_a_warning(tmp_path, caplog):
    content = setting("shuffle")
    runs.interrupt(tmp_path, content, after_epoch=1)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, gar')
    with caplog.at_level(logging.WARNING):
        runs.run(World(), tmp_path, content)
    assert "metrics.jsonl: line 2 is damaged and left out" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_row_that_was_lost_after_its_checkpoint_is_written_again(tmp_path):
    """The checkpoint is written first, so that ``time/total`` holds what it took."""
    content = setting("shuffle")
    runs.interrupt(tmp_path, content, after_epoch=1)
    (tmp_path / "metrics.jsonl").unlink()
    _, _, rows = runs.run(World(), tmp_path, content)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1] == rows[0]


def test_the_time_of_an_epoch_holds_its_checkpoint(tmp_path, monkeypatch):
    save, clock, hours = checkpoints.save, time.perf_counter, []

    def slow(*arguments, **options):
        hours.append(3600)
        return save(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(hours))

    monkeypatch.setattr(checkpoints, "save", slow)
    _, _, rows = runs.run(World(), tmp_path, setting("shuffle", epochs=1, checkpoint_steps=None))
    assert rows[0]["time/total"] > 3600
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["time/total"] == rows[0]["time/total"]


class _Notice(runs.Recorder):
    """From a step on this rank's machine is about to go; notes after which steps checkpoints were written."""

    def __init__(self, rank: int, told: int) -> None:
        super().__init__()
        self.due = False
        self.written: list[int] = []
        self._told = told if rank == 1 else 10**6

    def on_step(self, step, loss, lr):
        super().on_step(step, loss, lr)
        self.due |= step == self._told

    def on_checkpoint(self):
        self.written.append(len(self.steps))
        self.due = False


def _trained_with_a_notice(world, folder, content, told):
    notice = _Notice(world.rank, told)
    trainer.SYNC_SECONDS, before = 1e-9, trainer.SYNC_SECONDS  # a look after every step, as where steps are slow
    try:
        train(content, world=world, store=LocalStore(folder), observers=[notice], notice=lambda: notice.due)
    finally:
        trainer.SYNC_SECONDS = before
    return notice.written


@pytest.mark.dist
def test_a_machine_that_will_go_makes_a_checkpoint_due_on_all_ranks(tmp_path):
    """One rank is told at step 3: all write one after the next look, and go on."""
    content = setting("osgd", checkpoint_steps=None)
    told = gloo.run(_trained_with_a_notice, 2, str(tmp_path), content, 3)
    assert told == [[5, 11, 22], [5, 11, 22]]
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000001", "epoch_000002"]
