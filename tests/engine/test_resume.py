"""A resumed training equals an uninterrupted one to the last bit."""

from __future__ import annotations

import errno
import json
import logging
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
    """All tensors of the last checkpoint, without times."""
    state = checkpoints.latest(LocalStore(folder)).state
    tensors = {f"{part}.{key}": x for part in ("model", "objective", "embeddings") for key, x in state[part].items()}
    for index, buffers in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{index}.{key}": x for key, x in buffers.items()}
    return tensors


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """The folder and the rows of an uninterrupted training, trained once for each setting."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = folder, runs.run(World(), folder, setting(name))[2]
        return done[name]

    return get


@pytest.mark.parametrize("name", list(SETTINGS))
def test_resume_after_four_cuts_is_bitwise_equal(uncut, tmp_path, name):
    """Cut before the first checkpoint, within an epoch, after an epoch, and within the last epoch."""
    expected_folder, rows = uncut(name)
    for cut in ({"after_step": 3}, {"after_step": 9}, {"after_epoch": 1}, {"after_step": 11 + 5}):
        runs.interrupt(tmp_path, setting(name), **cut)
    losses, _, _ = runs.run(World(), tmp_path, setting(name))
    assert len(losses) == 11 - 4, "from the checkpoint within the second epoch"
    assert runs.equal(state_of(tmp_path), state_of(expected_folder))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2], "no row is lost or doubled"
    for line, row in zip(lines, rows, strict=True):
        for key in row:
            assert key.startswith("time/") or key == "plan/seconds" or line[key] == row[key], key


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 21), min_size=1, max_size=4))
def test_resume_after_cuts_at_any_steps_is_bitwise_equal(uncut, tmp_path_factory, cuts):
    expected_folder, _ = uncut("sogclr")
    folder = tmp_path_factory.mktemp("cuts")
    for cut in cuts:
        try:
            runs.interrupt(folder, setting("sogclr"), after_step=cut)
        except AssertionError:
            break  # the training had passed that step, and finished
    runs.run(World(), folder, setting("sogclr"))
    assert runs.equal(state_of(folder), state_of(expected_folder))


def test_resume_continues_at_the_last_checkpoint_within_an_epoch(tmp_path):
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
    assert rows[0]["plan/coverage"] > 11 * 16 / 180 / 2, "samples visited before the cut count"


def test_resume_skips_damaged_checkpoints_and_writes_them_again(uncut, tmp_path, caplog):
    expected_folder, _ = uncut("sogclr")
    runs.interrupt(tmp_path, setting("sogclr"), after_step=11 + 9)
    for name in ("epoch_000001_step_00000008", "epoch_000001_step_00000004"):
        state = tmp_path / "checkpoints" / name / "state.pt"
        state.write_bytes(state.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        losses, _, _ = runs.run(World(), tmp_path, setting("sogclr"))
    assert len(losses) == 11
    assert "epoch_000001_step_00000008" in caplog.text
    assert runs.equal(state_of(tmp_path), state_of(expected_folder))


def test_resume_keeps_new_checkpoints_beside_a_damaged_newer_one(tmp_path):
    """After going back to epoch 1 with a damaged epoch 2 on disk, checkpoints within epoch 2 stay."""
    content = setting("shuffle", epochs=3)
    runs.interrupt(tmp_path, content, after_epoch=2)
    state = tmp_path / "checkpoints" / "epoch_000002" / "state.pt"
    state.write_bytes(b"")
    runs.interrupt(tmp_path, content, after_step=11 + 5)
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000001", "epoch_000001_step_00000004"]


@pytest.mark.dist
@pytest.mark.parametrize("sampler", ["osgd", "spectral"])
def test_resume_on_two_workers_continues_what_one_began(tmp_path, sampler):
    """Checkpoints, also of state per sample and of the cache, do not depend on the number of workers."""
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


def test_keep_checkpoints_keeps_the_best_besides_the_newest(tmp_path, monkeypatch):
    scores = iter([0.25, 0.75, 0.5, 0.5])
    monkeypatch.setattr(trainer.Trainer, "_validate", lambda self: {"retrieval/mrr": next(scores)})
    content = runs.exact(train={"epochs": 4, "keep_checkpoints": 1})
    runs.run(World(), tmp_path, content)
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000002", "epoch_000004"]
    assert checkpoints.best(LocalStore(tmp_path)).epoch == 2
    assert checkpoints.latest(LocalStore(tmp_path)).epoch == 4


def test_on_checkpoint_is_called_before_every_checkpoint(tmp_path):
    recorder = runs.Recorder()
    train(setting("shuffle"), world=World(), store=LocalStore(tmp_path), observers=[recorder])
    assert recorder.checkpoints == 2 * 3, "after steps 4 and 8, and at the end, of each epoch"


def test_run_id_stays_when_a_training_is_resumed(tmp_path):
    first = runs.experiment(train={"epochs": 1, "batch_size": 16})
    train(first, world=World(), store=LocalStore(tmp_path), run_id="003-abcd")
    assert checkpoints.latest(LocalStore(tmp_path)).meta["run_id"] == "003-abcd"
    train(first, world=World(), store=LocalStore(tmp_path), run_id="another")
    assert checkpoints.latest(LocalStore(tmp_path)).meta["run_id"] == "003-abcd"


@pytest.mark.parametrize("name", ["epoch_000001_step_00000004", pytest.param("epoch_000002", marks=pytest.mark.slow)])
def test_resume_of_a_killed_process_is_bitwise_equal(uncut, tmp_path, name):
    """SIGKILL of a real process at some moment after a checkpoint has appeared."""
    expected_folder, _ = uncut("osgd")
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump(setting("osgd").model_dump(mode="json")))
    folder = tmp_path / "run"
    line = [sys.executable, "-m", "mbcl", "train", "--config", str(config), "--out", str(folder), "--quiet"]
    process = subprocess.Popen(line)  # with the number of threads of this process, which conftest.py has set
    wait_for(lambda: (folder / "checkpoints" / name).exists() or process.poll() is not None, every=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*line, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert runs.equal(state_of(folder), state_of(expected_folder))


def test_resume_refuses_data_of_another_size(tmp_path, monkeypatch):
    runs.interrupt(tmp_path, setting("shuffle"), after_step=6)
    load = build.load_data
    monkeypatch.setattr(
        build, "load_data", lambda data, seed: load(data.model_copy(update={"max_samples": 160}), seed=seed)
    )
    with pytest.raises(CheckpointError, match="was made from 180 training samples, but the data have 144 now"):
        runs.run(World(), tmp_path, setting("shuffle"))


def test_resume_without_a_valid_checkpoint_warns_and_starts_again(uncut, tmp_path, caplog):
    expected_folder, _ = uncut("shuffle")
    runs.interrupt(tmp_path, setting("shuffle"), after_epoch=1)
    for state in (tmp_path / "checkpoints").glob("*/state.pt"):
        state.unlink()
    with caplog.at_level(logging.WARNING):
        losses, _, _ = runs.run(World(), tmp_path, setting("shuffle"))
    assert "no whole checkpoint is left; the training starts again" in caplog.text
    assert len(losses) == 22
    assert runs.equal(state_of(tmp_path), state_of(expected_folder))


def _train_on_a_full_disk(world, folder, content, full):
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
def test_trainer_on_a_full_disk_ends_every_rank(tmp_path, full):
    """Only rank 0 writes; the others must not wait for it forever."""
    errors = gloo.run(_train_on_a_full_disk, 2, str(tmp_path), setting("shuffle"), full)
    assert f"{full}: cannot be written: No space left on device" in errors[0]
    assert errors[1] == f"rank 0: {errors[0]}"


def test_train_raises_storage_error_for_a_store_behind_a_uri(tmp_path):
    """A retry may find the storage available again."""
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        train(setting("shuffle"), world=World(), store=open_store(f"file://{tmp_path}"))


def _train_uncut_and_cut(world, folder, content):
    uncut_run = runs.run(world, f"{folder}/whole", content)
    runs.interrupt(f"{folder}/cut", content, world=world, after_step=13)
    runs.run(world, f"{folder}/cut", content)
    return uncut_run[2]


@pytest.mark.dist
def test_resume_on_two_ranks_without_sync_batchnorm_is_bitwise_equal(tmp_path):
    """Embeddings in evaluation mode use running statistics, which differ between ranks until a checkpoint."""
    content = runs.experiment("osgd", embeddings={"mode": "eval"}, train={**STEPS, "sync_batchnorm": False})
    gloo.run(_train_uncut_and_cut, 2, str(tmp_path), content)
    assert runs.equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


def test_resume_drops_a_damaged_metrics_line_with_a_warning(tmp_path, caplog):
    content = setting("shuffle")
    runs.interrupt(tmp_path, content, after_epoch=1)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, gar')
    with caplog.at_level(logging.WARNING):
        runs.run(World(), tmp_path, content)
    assert "metrics.jsonl: line 2 is damaged and left out" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_resume_writes_a_lost_metrics_row_again(tmp_path):
    """The checkpoint is written before the row, so that ``time/total`` includes it."""
    content = setting("shuffle")
    runs.interrupt(tmp_path, content, after_epoch=1)
    (tmp_path / "metrics.jsonl").unlink()
    _, _, rows = runs.run(World(), tmp_path, content)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1] == rows[0]


def test_time_total_includes_the_checkpoint(tmp_path, monkeypatch):
    save, clock, hours = checkpoints.save, time.perf_counter, []

    def slow(*arguments, **options):
        hours.append(3600)
        return save(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(hours))

    monkeypatch.setattr(checkpoints, "save", slow)
    _, _, rows = runs.run(World(), tmp_path, setting("shuffle", epochs=1, checkpoint_steps=None))
    assert rows[0]["time/total"] > 3600
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["time/total"] == rows[0]["time/total"]


class _NoticeAtStep(runs.Recorder):
    """From a step on rank 1 has a preemption notice; records after which steps checkpoints were written."""

    def __init__(self, rank: int, due_step: int) -> None:
        super().__init__()
        self.due = False
        self.written: list[int] = []
        self._due_step = due_step if rank == 1 else 10**6

    def on_step(self, step, loss, lr):
        super().on_step(step, loss, lr)
        self.due |= step == self._due_step

    def on_checkpoint(self):
        self.written.append(len(self.steps))
        self.due = False


def _train_with_a_notice(world, folder, content, due_step):
    notice = _NoticeAtStep(world.rank, due_step)
    trainer.SYNC_SECONDS, sync_seconds = 1e-9, trainer.SYNC_SECONDS  # synchronise after every step, as with slow steps
    try:
        train(content, world=world, store=LocalStore(folder), observers=[notice], notice=lambda: notice.due)
    finally:
        trainer.SYNC_SECONDS = sync_seconds
    return notice.written


@pytest.mark.dist
def test_preemption_notice_of_one_rank_saves_a_checkpoint_on_all(tmp_path):
    """One rank has a notice at step 3: all save a checkpoint at the next synchronisation, and continue."""
    content = setting("osgd", checkpoint_steps=None)
    saved_steps = gloo.run(_train_with_a_notice, 2, str(tmp_path), content, 3)
    assert saved_steps == [[5, 11, 22], [5, 11, 22]]
    assert checkpoints.names(LocalStore(tmp_path)) == ["epoch_000001", "epoch_000002"]


def test_resume_makes_no_pass_for_statistics_that_the_checkpoint_replaces(tmp_path):
    """Statistics of the initial weights are those of training images where embeddings are in evaluation mode."""
    content = runs.experiment("spectral", train={"epochs": 2, "batch_size": 16}, embeddings={"mode": "eval"})

    def statistics(of) -> list[torch.Tensor]:
        return [layer.running_mean.clone() for layer in of.learner.model.modules() if hasattr(layer, "running_mean")]

    def built(folder) -> trainer.Trainer:
        return trainer.Trainer(content, world=World(), store=LocalStore(folder))

    runs.interrupt(tmp_path / "cut", content, after_epoch=1)
    begun, again = built(tmp_path / "new"), built(tmp_path / "cut")
    assert all(mean.abs().max() > 0 for mean in statistics(begun))
    assert all(mean.abs().max() == 0 for mean in statistics(again)), "as the model was built"
    again.resume()
    stored = checkpoints.latest(LocalStore(tmp_path / "cut")).state["model"]
    assert runs.equal(again.learner.model.state_dict(), stored)
    for name in checkpoints.names(LocalStore(tmp_path / "cut")):
        (tmp_path / "cut" / "checkpoints" / name / "state.pt").write_bytes(b"damaged")
    for mean, expected in zip(statistics(built(tmp_path / "cut")), statistics(begun), strict=True):
        assert torch.equal(mean, expected), "a training that starts again needs them"


def test_resume_names_what_a_checkpoint_of_an_earlier_version_lacks(tmp_path):
    content = setting("spectral")
    runs.interrupt(tmp_path, content, after_step=5)
    store = LocalStore(tmp_path)
    checkpoint = checkpoints.latest(store)
    del checkpoint.state["progress"]["embedded"]
    meta = {key: value for key, value in checkpoint.meta.items() if key not in ("epoch", "step")}
    checkpoints.save(store, epoch=0, step=4, state=checkpoint.state, meta=meta, keep=2)
    with pytest.raises(
        CheckpointError, match="epoch_000000_step_00000004 .* earlier version of mbcl and lacks embedded"
    ):
        runs.run(World(), tmp_path, content)
