"""The display of a running study: what it says of trials, devices and the time left."""

from __future__ import annotations

import io
import json
import threading

import pytest
from rich.console import Console

from mbcl.io.store import LocalStore, write_text
from mbcl.orchestration.live import Devices, LiveDisplay
from mbcl.orchestration.time_left import Running, seconds_left
from mbcl.study.record import StudyRecord, TrialRecord


def study_of(*statuses: str, seconds: float = 20.0) -> StudyRecord:
    """A study of one trial for each status, each of its own setting."""
    trials = {
        f"{number:03d}-x": TrialRecord(
            ordinal=number, setting=number, seed=0, sampler="shuffle", objective="simclr", parameters={}, status=status
        )
        for number, status in enumerate(statuses)
    }
    for number, record in enumerate(trials.values()):
        if record.status == "finished":
            record.metrics, record.seconds = {"val/retrieval/mrr": 0.5 + number / 100}, {"total": seconds}
    return StudyRecord(name="s", space_digest="", metric="val/retrieval/mrr", mode="max", created="", trials=trials)


@pytest.mark.parametrize(
    "running, pending, slots, expected",
    [
        ([], [5, 5, 5], 1, 60.0),  # of trials that have ended
        ([], [5, 5, 5], 2, 40.0),
        ([Running(1, 10.0, 0.25)], [], 2, 30.0),  # of its own epochs
        ([Running(1, 10.0, 0.25)], [1], 1, 70.0),
        ([Running(1, 30.0, 0.0)], [], 1, None),  # longer than any before, and no epoch yet
        ([Running(1, 5.0, 0.0)], [-1], 1, 35.0),  # 15 s more, and 20 s of one that is yet to be drawn
    ],
)
def test_seconds_left(running, pending, slots, expected):
    assert seconds_left(study_of("finished"), running, pending, slots) == expected


def test_seconds_left_is_unknown_before_the_first_epoch():
    assert seconds_left(study_of("pending"), [Running(0, 3.0, 0.0)], [], 1) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_display_has_trials_losses_the_best_devices_and_the_time_left(tmp_path, terminal):
    study = study_of("finished", "finished", "failed", "running", "pending")
    store, screen = LocalStore(tmp_path), Console(file=io.StringIO(), force_terminal=terminal, width=160)
    devices = Devices("core", 1, 2, 2)
    display = LiveDisplay(screen, study, store, devices, num_epochs=lambda trial_id: 4, label=lambda key: f"<{key}>")
    with display.shown():
        display.start("003-x")
        row = {"epoch": 1, "train/loss": 2.5, "val/retrieval/mrr": 0.25}
        write_text(store, "trials/003-x/metrics.jsonl", json.dumps(row) + "\n")
        display._printed_at -= 3600  # an hour ago
        display.poll()
    text = screen.file.getvalue()
    assert "3 of 5 trials, 1 failed, best val/retrieval/mrr 0.5100 (<001-x>), 1 of 2 cores in use, about" in text
    assert ("<003-x>: loss 2.5000, val 0.2500" in text) == terminal
    display.end("003-x")
    assert "0 of 2 cores in use" in display.summary()


class Reads(LocalStore):
    """A folder that takes itself for an object store, and lists what is read."""

    uri = "s3://bucket/study"

    def __init__(self, folder):
        super().__init__(folder)
        self.read = []

    def read_bytes(self, name):
        self.read.append(name.split("/")[1])
        return super().read_bytes(name)


def test_of_an_object_store_one_running_trial_at_a_time_is_read_after_seconds(tmp_path):
    study, store = study_of("finished", "running", "running", "pending"), Reads(tmp_path)
    screen = Console(file=io.StringIO(), force_terminal=True, width=160)
    display = LiveDisplay(
        screen, study, store, Devices("core", 1, 2, 2), num_epochs=lambda trial_id: 4, label=lambda key: key
    )
    for key in ("001-x", "002-x"):
        write_text(store, f"trials/{key}/metrics.jsonl", json.dumps({"epoch": 1, "train/loss": 2.0}) + "\n")
        display.start(key)
    for _ in range(6):
        display.poll()
    assert store.read == ["001-x", "002-x"]
    for key, ago in (("001-x", 3600), ("002-x", 7200)):
        display._read_at[key] -= ago
    for _ in range(6):
        display.poll()
    assert store.read[2:] == ["002-x", "001-x"]
    display.end("001-x")
    display._read_at["002-x"] -= 3600
    display.poll()
    assert store.read[4:] == ["002-x"], "a trial that has ended is not read"


def test_a_trial_that_starts_again_has_one_bar(tmp_path):
    study, screen = study_of("running"), Console(file=io.StringIO(), force_terminal=True, width=160)
    display = LiveDisplay(
        screen, study, LocalStore(tmp_path), Devices("core", 1, 2, 2), num_epochs=lambda key: 4, label=lambda key: key
    )
    display.start("000-x")
    display.start("000-x")
    assert len(display._bars.tasks) == 1
    display.end("000-x")
    assert not display._bars.tasks


def test_the_thread_of_the_display_reads_no_record(tmp_path):
    """The main thread adds trials that a search draws; a summary in another thread would fail in between."""
    study, readers = study_of("finished", "running"), []

    def label(key: str) -> str:
        readers.append(threading.current_thread())
        return key

    screen = Console(file=io.StringIO(), force_terminal=True, width=160)
    display = LiveDisplay(
        screen, study, LocalStore(tmp_path), Devices("core", 1, 2, 2), num_epochs=lambda trial_id: 4, label=label
    )
    with display.shown():
        display.start("001-x")
        read = len(readers)
        rendering = threading.Thread(target=display._render)
        rendering.start()
        rendering.join()
    assert read
    assert set(readers) == {threading.main_thread()}
