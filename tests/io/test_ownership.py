"""Ownership of a folder: only the run with the last claim may write (fencing tokens)."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from patience import PATIENCE

from mbcl.errors import MbclError, OwnershipError
from mbcl.io import ownership
from mbcl.io.ownership import OWNER_FILE, Fence, FencedStore, claim, release
from mbcl.io.store import open_store


@pytest.fixture(params=["path", "uri"])
def store(request, tmp_path):
    if request.param == "uri":
        pytest.importorskip("pyarrow")
    return open_store(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_fenced_store_writes_with_the_last_claim_only(store):
    first = FencedStore(store, [claim(store)])
    first.write_bytes("a", b"1")
    second = FencedStore(store, [claim(store)])
    second.write_bytes("b", b"2")
    for write in (
        lambda: first.write_bytes("a", b"3"),
        lambda: first.delete("b"),
        lambda: first.child("deep").write_bytes("c", b"3"),
        lambda: first.publish("folder"),
        lambda: first.local_folder("folder"),
    ):
        with pytest.raises(OwnershipError, match="another run works there since"):
            write()
    assert (first.read_bytes("a"), first.list("deep"), first.exists("b")) == (b"1", [], True)


def test_fenced_store_refuses_to_write_after_release(store):
    fenced = FencedStore(store, [claim(store)])
    release(store)
    with pytest.raises(OwnershipError):
        fenced.write_bytes("a", b"1")


def test_fence_check_explains_a_missing_folder(store):
    with pytest.raises(OwnershipError, match=r"gone: has no \.owner: .* or this machine does not see"):
        Fence(store.child("gone").uri, "token").check()


def test_claim_under_a_lost_claim_is_refused(store):
    old = claim(store)
    trial = claim(store.child("trial"), under=[old])
    claim(store)
    with pytest.raises(OwnershipError):
        claim(store.child("trial"), under=[old])
    trial.check()  # unchanged


def _write_in_a_loop(folder: str, fence: Fence, started: multiprocessing.synchronize.Event) -> None:
    store = FencedStore(open_store(folder), [fence])
    number = 0
    while True:
        store.write_bytes("value", f"{os.getpid()} {number}".encode() * 1000)
        number += 1
        if number == 20:
            started.set()


def _writer(tmp_path: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    arguments = (str(tmp_path), claim(open_store(tmp_path)), started)
    process = context.Process(target=_write_in_a_loop, args=arguments, daemon=True)
    process.start()
    assert started.wait(PATIENCE)
    return process


def test_claim_stops_writes_of_the_previous_process_at_once(tmp_path, monkeypatch):
    """The content after the claim does not change any more."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", PATIENCE)
    process = _writer(tmp_path)
    claim(open_store(tmp_path))
    content = (tmp_path / "value").read_bytes()
    process.join(PATIENCE)
    assert process.exitcode == 1, "the process continues to write"
    assert (tmp_path / "value").read_bytes() == content


def test_claim_waits_a_limited_time_for_a_stopped_writer(tmp_path, monkeypatch):
    claim(open_store(tmp_path))
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.2)
    with (tmp_path / OWNER_FILE).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(MbclError, match="has been writing for 0.2 s"):
            claim(open_store(tmp_path))
    claim(open_store(tmp_path))


def test_claim_does_not_wait_for_a_killed_writer(tmp_path, monkeypatch):
    process = _writer(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)
    claim(open_store(tmp_path))
