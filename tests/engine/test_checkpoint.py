"""Checkpoints: a damaged one is never loaded."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import CheckpointError
from mbcl.io.store import LocalStore


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path)
    for epoch in (1, 2):
        state = {"model": {"w": torch.full((3,), float(epoch))}}
        checkpoints.save(store, epoch=epoch, state=state, meta={"row": {"epoch": epoch}}, keep=3)
    return store


def test_latest_loads_the_newest_saved_checkpoint(store):
    checkpoint = checkpoints.latest(store)
    assert (checkpoint.name, checkpoint.epoch, checkpoint.meta) == (
        "epoch_000002",
        2,
        {"row": {"epoch": 2}, "epoch": 2, "step": 0},
    )
    assert torch.equal(checkpoint.state["model"]["w"], torch.full((3,), 2.0))


def test_latest_of_an_empty_folder_is_none(tmp_path):
    assert checkpoints.latest(LocalStore(tmp_path)) is None


@pytest.mark.parametrize("name", ["state.pt", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_latest_skips_a_damaged_checkpoint_with_a_warning(store, name, damage, caplog):
    path = store.folder / "checkpoints" / "epoch_000002" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-7], "flipped": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        checkpoint = checkpoints.latest(store)
    if name == "manifest.json" and damage == "flipped" and checkpoint.epoch == 2:
        json.loads(path.read_bytes())  # a flipped bit outside of names, sizes and digests goes undetected
        return
    assert checkpoint.epoch == 1
    assert "epoch_000002" in caplog.text
    with pytest.raises(CheckpointError):
        checkpoints.load(store, "epoch_000002")


class BadSector(LocalStore):
    """A store that raises an OSError for one file."""

    number = errno.EIO

    def child(self, name):
        return BadSector(self.folder / name)

    def read_bytes(self, name):
        if str(self.folder / name).endswith("epoch_000002/state.pt"):
            raise OSError(self.number, os.strerror(self.number), str(self.folder / name))
        return super().read_bytes(name)


def test_find_latest_valid_skips_disk_errors_but_raises_network_errors(store, monkeypatch):
    checkpoint, problems = checkpoints.find_latest_valid(BadSector(store.folder))
    assert checkpoint.name == "epoch_000001"
    assert problems == [f"{store.folder}/checkpoints/epoch_000002: cannot be read: Input/output error"]
    monkeypatch.setattr(BadSector, "number", errno.ENETDOWN)
    with pytest.raises(OSError, match="Network is down"):
        checkpoints.find_latest_valid(BadSector(store.folder))


def test_find_latest_valid_skips_a_file_named_as_a_checkpoint(store):
    (store.folder / "checkpoints" / "epoch_000003").write_text("")
    checkpoint, problems = checkpoints.find_latest_valid(store)
    assert checkpoint.name == "epoch_000002"
    assert problems == [f"{store.folder}/checkpoints/epoch_000003: damaged: it is no folder"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(min_value=0, max_value=10**6))
def test_latest_skips_a_state_truncated_at_any_byte(store, cut):
    path = store.folder / "checkpoints" / "epoch_000002" / "state.pt"
    content = path.read_bytes()
    try:
        path.write_bytes(content[: cut % len(content)])
        assert checkpoints.latest(store).epoch == 1
    finally:
        path.write_bytes(content)


def test_load_refuses_a_pickle_that_executes_code(store):
    """Loading is weights_only: a checkpoint cannot execute code."""
    import hashlib
    import io

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    buffer = io.BytesIO()
    torch.save({"model": Evil()}, buffer)
    folder = store.folder / "checkpoints" / "epoch_000002"
    (folder / "state.pt").write_bytes(buffer.getvalue())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {
        "size": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(store, "epoch_000002")


def test_load_refuses_a_checkpoint_in_the_folder_of_another(store):
    (store.folder / "checkpoints" / "epoch_000002").rename(store.folder / "checkpoints" / "epoch_000007")
    with pytest.raises(CheckpointError, match="epoch_000007: holds the checkpoint epoch_000002"):
        checkpoints.load(store, "epoch_000007")
    assert checkpoints.latest(store).epoch == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_load_never_returns_other_content_from_damaged_files(store, data):
    """A flipped bit, a truncation or a deletion anywhere is refused, or changes nothing that is loaded."""
    good = checkpoints.load(store, "epoch_000002")
    path = (
        store.folder
        / "checkpoints"
        / "epoch_000002"
        / data.draw(st.sampled_from(["manifest.json", "meta.json", "state.pt"]))
    )
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    bit, length = data.draw(st.integers(0, 7)), data.draw(st.integers(1, 20))
    damaged = {
        "flip": content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :],
        "cut": content[:position],
        "hole": content[:position] + content[position + length :],
    }[data.draw(st.sampled_from(["flip", "cut", "hole"]))]
    try:
        path.write_bytes(damaged)
        loaded = checkpoints.load(store, "epoch_000002")
        assert (loaded.epoch, loaded.sha256, loaded.meta) == (good.epoch, good.sha256, good.meta)
    except CheckpointError:
        pass
    finally:
        path.write_bytes(content)


def test_best_goes_by_mrr_and_in_an_earlier_training_by_top1(tmp_path):
    """The rows of mbcl 0.2 have no MRR of the validation split."""
    rows = [{"val/retrieval/top1": value} for value in (0.3, 0.5, 0.5, None)]
    for earlier, best_epoch in ((True, 2), (False, 1)):
        store = LocalStore(tmp_path / str(earlier))
        for epoch, (row, mrr) in enumerate(zip(rows, (0.7, 0.6, None, None), strict=True), 1):
            row = row if earlier else {**row, "val/retrieval/mrr": mrr}
            checkpoints.save(store, epoch=epoch, state={}, meta={"row": row}, keep=4)
        assert checkpoints.best(store).epoch == best_epoch
