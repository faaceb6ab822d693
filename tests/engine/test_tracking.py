"""Trackers write files that TensorBoard and W&B read."""

from __future__ import annotations

import json
import re

import pytest
from engine import runs
from patience import wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, train
from mbcl.engine.tracking import log_final
from mbcl.errors import ConfigError, TrainingError
from mbcl.io.store import LocalStore, open_store


def test_tensorboard_tracker_writes_every_step_and_row(tmp_path):
    train(runs.experiment("osgd", track=["tensorboard"]), world=World(), store=LocalStore(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 23))
    for key in ("train/loss", "plan/lift", "val/retrieval/top1"):
        assert [event.value for event in events.Scalars(key)] == pytest.approx([row[key] for row in rows])
        assert [event.step for event in events.Scalars(key)] == [11, 22]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_tensorboard_tracker_keeps_the_steps_of_a_failed_training(tmp_path, scheme):
    class Failure(BaseObserver):
        def on_step(self, step, loss, lr):
            if step == 14:
                raise TrainingError("the end")

    content = runs.experiment(track=["tensorboard"])
    with pytest.raises(TrainingError, match="the end"):
        train(content, world=World(), store=open_store(f"{scheme}{tmp_path}"), observers=[Failure()])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 16))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_wandb_tracker_without_a_key_is_offline_under_the_run_id(tmp_path, monkeypatch, scheme):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    content = runs.experiment(track=["wandb"])
    train(content, world=World(), store=open_store(f"{scheme}{tmp_path}"), run_id="003-abcd1234", group="samplers")
    run_folders = [p.name for p in (tmp_path / "wandb").iterdir() if p.name.startswith("offline-run-")]
    assert len(run_folders) == 1
    assert run_folders[0].endswith("-003-abcd1234")
    assert (tmp_path / "wandb" / run_folders[0] / "run-003-abcd1234.wandb").stat().st_size > 0


def test_tensorboard_keeps_every_epoch_of_a_resumed_training(tmp_path):
    class Interrupt(BaseObserver):
        def on_step(self, step, loss, lr):
            if step == 25:  # in the third epoch
                raise KeyboardInterrupt

    content = runs.experiment(track=["tensorboard"])
    content = content.model_copy(update={"train": content.train.model_copy(update={"epochs": 4})})
    with pytest.raises(KeyboardInterrupt):
        train(content, world=World(), store=LocalStore(tmp_path), observers=[Interrupt()])
    train(content, world=World(), store=LocalStore(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [11, 22, 33, 44]
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 45))


def test_a_mode_that_wandb_does_not_know_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(ConfigError, match="track: wandb: found WANDB_MODE=off; did you mean 'offline'"):
        train(runs.experiment(track=["wandb"]), world=World(), store=LocalStore(tmp_path))


def test_wandb_without_a_key_says_so_and_takes_the_final_metrics_into_the_same_run(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    store, lines = LocalStore(tmp_path), []
    train(runs.experiment(track=["wandb"]), world=World(), store=store, run_id="a?b", log=lines.append)
    assert any(line.startswith("note: track: wandb: there is no API key") for line in lines)
    log_final(store, run_id="a?b", metrics={"retrieval/mrr": 0.75})
    folders = sorted(path for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run-"))
    # W&B numbers the folders of one second.
    assert [re.search(r"-a_b(-\d+)?$", folder.name) is not None for folder in folders] == [True, True], "one id"
    # Its service may still be writing when finish() returns.
    wait_for(lambda: any(b"retrieval/mrr" in path.read_bytes() for path in folders[-1].glob("*.wandb")))


def test_wandb_tracker_error_names_offline_mode_when_unreachable(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    real = wandb.init

    def impatient(*, settings, **options):
        settings.init_timeout = 1.0
        return real(settings=settings, **options)

    monkeypatch.setattr(wandb, "init", impatient)
    content = runs.experiment(track=["wandb"])
    with pytest.raises(TrainingError, match="^track: wandb: .*; WANDB_MODE=offline keeps the logs in") as caught:
        train(content, world=World(), store=LocalStore(tmp_path), run_id="003-abcd1234")
    assert "\n" not in str(caught.value)
