"""One sweep at a time on a results folder; one that has died holds nothing."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading

import pytest
from patience import PATIENCE, wait_for

from mbcl.errors import ConfigError, OwnershipError
from mbcl.io import ownership
from mbcl.io.ownership import FencedStore
from mbcl.io.store import open_store
from mbcl.orchestration.results_folder import lease
from mbcl.orchestration.results_folder.lease import hold

pytest.importorskip("pyarrow")


@pytest.fixture(params=["path", "uri"])
def location(request, tmp_path):
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    for name, seconds in (("SETTLE_SECONDS", 0.1), ("POLL_SECONDS", 0.1), ("WATCH_SECONDS", PATIENCE)):
        monkeypatch.setattr(lease, name, seconds)


def _hold_for_ever(location, pipe, machine, beat_seconds):
    lease.SETTLE_SECONDS, lease.BEAT_SECONDS = 0.1, beat_seconds
    if machine:
        lease._machine = lambda: machine
    with hold(open_store(location)) as fence:
        pipe.send(fence)
        for heart in [thread for thread in threading.enumerate() if "(_beat)" in thread.name]:
            heart.join()
            pipe.send("no heart beats")
        signal.pause()


@pytest.fixture
def holder(location):
    """Starts a process that holds the folder; it and its claim."""
    processes = []

    def start(machine="", beat_seconds=600.0):
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_hold_for_ever, args=(location, theirs, machine, beat_seconds), daemon=True)
        process.start()
        processes.append(process)
        assert ours.poll(PATIENCE)
        return process, ours.recv(), ours

    yield start
    for process in processes:
        process.kill()


def test_a_living_sweep_is_named_and_a_killed_one_holds_nothing(location, holder):
    process, fence, _ = holder()
    with (
        pytest.raises(ConfigError, match=rf"another sweep is at work there \(process {process.pid}"),
        hold(open_store(location)),
    ):
        pass
    FencedStore(open_store(location), [fence]).write_bytes("a", b"1")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    said = []
    with hold(open_store(location), said.append):
        with pytest.raises(OwnershipError):
            FencedStore(open_store(location), [fence]).write_bytes("a", b"2")
    assert said == [], "nothing is waited for"


def test_a_folder_that_was_given_back_is_free(location):
    for _ in range(2):
        with hold(open_store(location)) as fence:
            FencedStore(open_store(location), [fence]).write_bytes("a", b"1")
    assert open_store(location).read_bytes("a") == b"1"


def test_a_lease_of_another_machine_stands_as_long_as_its_heart_beats(tmp_path, holder, request, monkeypatch):
    location = f"file://{tmp_path}"
    if request.node.callspec.params["location"] == "path":
        pytest.skip("a lock needs no heartbeat")
    process, fence, pipe = holder(machine="elsewhere boot", beat_seconds=0.3)
    said = []
    with pytest.raises(ConfigError, match=r"\(process \d+ on elsewhere\)"), hold(open_store(location), said.append):
        pass
    assert f"watching for {PATIENCE:g} s whether that still lives" in said[0]
    os.kill(process.pid, signal.SIGSTOP)  # as a machine that is paused: it will go on later
    wait_for(lambda: lease._stat(process.pid)[0] == "T")
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)
    with hold(open_store(location)) as mine:
        os.kill(process.pid, signal.SIGCONT)
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == "no heart beats"
        mine.check()
        with pytest.raises(OwnershipError):
            fence.check()
        assert lease._read(open_store(location))["process"] == os.getpid()


def test_a_process_that_nobody_has_waited_for_holds_nothing(location, holder):
    process, _, _ = holder()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in the system's table
    said = []
    with hold(open_store(location), said.append):
        pass
    assert said == []


def test_a_late_write_of_an_earlier_run_is_no_failure_of_this_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.2)
    with hold(open_store(tmp_path)), (tmp_path / ".owner").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        duplicate = os.dup(stream.fileno())  # another process that writes holds the lock on
    os.close(duplicate)
    assert "not given back" in caplog.text


def test_where_files_have_no_locks_there_is_a_lease(tmp_path, monkeypatch):
    """No file system without locks is at hand: the system's answer is that of Lustre without ``-o flock``."""

    def without(stream, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", without)
    store = open_store(tmp_path)
    with hold(store) as fence:
        FencedStore(store, [fence]).write_bytes("a", b"1")
        assert lease._read(store)["process"] == os.getpid()
        with (
            pytest.raises(ConfigError, match=rf"another sweep is at work there \(process {os.getpid()} on "),
            hold(store),
        ):
            pass
    assert not (tmp_path / lease.LEASE_FILE).exists()
    with hold(store):
        pass


def test_a_folder_that_cannot_be_written_is_said_so():
    with (
        pytest.raises(ConfigError, match="--results-dir: /proc/nobody/study cannot be written"),
        hold(open_store("/proc/nobody/study")),
    ):
        pass
