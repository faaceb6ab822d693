"""Whoever claimed a folder last may write into it, and nobody that was there before."""

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


def test_only_the_last_claim_stands(store):
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


def test_a_folder_that_was_given_back_belongs_to_nobody(store):
    fenced = FencedStore(store, [claim(store)])
    release(store)
    with pytest.raises(OwnershipError):
        fenced.write_bytes("a", b"1")


def test_a_claim_without_a_folder_has_fallen_and_nobody_is_blamed(store):
    with pytest.raises(OwnershipError, match=r"gone: has no \.owner: .* or this machine does not see"):
        Fence(store.child("gone").uri, "token").check()


def test_a_claim_under_one_that_has_fallen_is_refused(store):
    old = claim(store)
    trial = claim(store.child("trial"), under=[old])
    claim(store)
    with pytest.raises(OwnershipError):
        claim(store.child("trial"), under=[old])
    trial.check()  # was not touched


def _write_for_ever(folder: str, fence: Fence, begun: multiprocessing.synchronize.Event) -> None:
    store = FencedStore(open_store(folder), [fence])
    number = 0
    while True:
        store.write_bytes("value", f"{os.getpid()} {number}".encode() * 1000)
        number += 1
        if number == 20:
            begun.set()


def _writer(tmp_path: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    arguments = (str(tmp_path), claim(open_store(tmp_path)), begun)
    process = context.Process(target=_write_for_ever, args=arguments, daemon=True)
    process.start()
    assert begun.wait(PATIENCE)
    return process


def test_a_process_that_writes_on_is_cut_off_by_the_claim_itself(tmp_path, monkeypatch):
    """Not a moment later: what is there after the claim stays as it is."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", PATIENCE)
    process = _writer(tmp_path)
    claim(open_store(tmp_path))
    seen = (tmp_path / "value").read_bytes()
    process.join(PATIENCE)
    assert process.exitcode == 1, "it goes on writing"
    assert (tmp_path / "value").read_bytes() == seen


def test_a_process_that_is_stopped_within_a_write_holds_a_claim_up_for_a_while_only(tmp_path, monkeypatch):
    claim(open_store(tmp_path))
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.2)
    with (tmp_path / OWNER_FILE).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(MbclError, match="has been writing for 0.2 s"):
            claim(open_store(tmp_path))
    claim(open_store(tmp_path))


def test_a_killed_writer_holds_nothing_up(tmp_path, monkeypatch):
    process = _writer(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)
    claim(open_store(tmp_path))
