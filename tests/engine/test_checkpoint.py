"""Checkpoints are whole or are passed over."""

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


def test_what_was_saved_is_loaded(store):
    found = checkpoints.latest(store)
    assert (found.name, found.epoch, found.meta) == ("epoch_000002", 2, {"row": {"epoch": 2}, "epoch": 2, "step": 0})
    assert torch.equal(found.state["model"]["w"], torch.full((3,), 2.0))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(LocalStore(tmp_path)) is None


@pytest.mark.parametrize("name", ["state.pt", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(store, name, damage, caplog):
    path = store.folder / "checkpoints" / "epoch_000002" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-7], "flipped": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest(store)
    if name == "manifest.json" and damage == "flipped" and found.epoch == 2:
        json.loads(path.read_bytes())  # a bit that is not part of a name, size or digest may flip unseen
        return
    assert found.epoch == 1
    assert "epoch_000002" in caplog.text
    with pytest.raises(CheckpointError):
        checkpoints.load(store, "epoch_000002")


class BadSector(LocalStore):
    """A disk that cannot read one file any more, or that does not answer at all."""

    number = errno.EIO

    def child(self, name):
        return BadSector(self.folder / name)

    def read_bytes(self, name):
        if str(self.folder / name).endswith("epoch_000002/state.pt"):
            raise OSError(self.number, os.strerror(self.number), str(self.folder / name))
        return super().read_bytes(name)


def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over(store, monkeypatch):
    found, wrong = checkpoints.find_latest_valid(BadSector(store.folder))
    assert found.name == "epoch_000001"
    assert wrong == [f"{store.folder}/checkpoints/epoch_000002: cannot be read: Input/output error"]
    monkeypatch.setattr(BadSector, "number", errno.ENETDOWN)
    with pytest.raises(OSError, match="Network is down"):
        checkpoints.find_latest_valid(BadSector(store.folder))


def test_a_file_in_the_place_of_a_checkpoint_is_passed_over(store):
    (store.folder / "checkpoints" / "epoch_000003").write_text("")
    found, wrong = checkpoints.find_latest_valid(store)
    assert found.name == "epoch_000002"
    assert wrong == [f"{store.folder}/checkpoints/epoch_000003: damaged: it is no folder"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(min_value=0, max_value=10**6))
def test_a_checkpoint_cut_anywhere_is_never_loaded(store, cut):
    path = store.folder / "checkpoints" / "epoch_000002" / "state.pt"
    content = path.read_bytes()
    try:
        path.write_bytes(content[: cut % len(content)])
        assert checkpoints.latest(store).epoch == 1
    finally:
        path.write_bytes(content)


def test_a_state_that_would_run_code_is_refused(store):
    """Loading is weights_only: a checkpoint found in a results folder cannot execute anything."""
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


def test_a_checkpoint_in_another_ones_folder_is_refused(store):
    (store.folder / "checkpoints" / "epoch_000002").rename(store.folder / "checkpoints" / "epoch_000007")
    with pytest.raises(CheckpointError, match="epoch_000007: holds the checkpoint epoch_000002"):
        checkpoints.load(store, "epoch_000007")
    assert checkpoints.latest(store).epoch == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_of_any_file_gives_another_content(store, data):
    """A bit flipped, a cut or a hole anywhere: refused, or (a bit that means nothing) the same content."""
    good = checkpoints.load(store, "epoch_000002")
    path = (
        store.folder
        / "checkpoints"
        / "epoch_000002"
        / data.draw(st.sampled_from(["manifest.json", "meta.json", "state.pt"]))
    )
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    bit, length = data.draw(st.integers(0, 7)), data.draw(st.integers(1, 20))
    damaged = {
        "flip": content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :],
        "cut": content[:place],
        "hole": content[:place] + content[place + length :],
    }[data.draw(st.sampled_from(["flip", "cut", "hole"]))]
    try:
        path.write_bytes(damaged)
        found = checkpoints.load(store, "epoch_000002")
        assert (found.epoch, found.sha256, found.meta) == (good.epoch, good.sha256, good.meta)
    except CheckpointError:
        pass
    finally:
        path.write_bytes(content)
