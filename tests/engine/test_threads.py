"""The number of threads is part of what a training writes, and is set again by its configuration."""

from __future__ import annotations

import torch
import yaml
from engine import runs

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, checkpoint, train
from mbcl.io.store import LocalStore

TRAIN = {"epochs": 1, "batch_size": 16}


class Threads(BaseObserver):
    """Records the threads of the process, and ends the training after its first step."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_step(self, step, loss, lr):
        self.found.append(torch.get_num_threads())
        raise KeyboardInterrupt


def threads_of(content: Experiment, folder) -> list[int]:
    observer = Threads()
    try:
        train(content, world=World(), store=LocalStore(folder), observers=[observer])
    except KeyboardInterrupt:
        return observer.found
    raise AssertionError("the training was not interrupted")


def test_a_configuration_sets_the_threads_of_its_training_and_not_those_of_the_process(tmp_path):
    before = torch.get_num_threads()
    content = runs.experiment(train={**TRAIN, "threads": before + 1})
    assert threads_of(content, tmp_path / "one") == [before + 1]
    assert torch.get_num_threads() == before
    written = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert validate(Experiment, written, "config.yaml") == content


def test_the_number_is_written_where_none_is_given_and_is_no_other_experiment(tmp_path):
    before = torch.get_num_threads()
    content = runs.experiment(train=TRAIN)
    train(content, world=World(), store=LocalStore(tmp_path))
    written = validate(Experiment, yaml.safe_load((tmp_path / "config.yaml").read_text()), "config.yaml")
    assert written.train.threads == before
    assert written.digest == content.digest
    assert checkpoint.latest(LocalStore(tmp_path)).meta["experiment"]["train"]["threads"] == before


def test_a_resumed_training_goes_on_with_the_threads_that_it_began_with(tmp_path):
    before = torch.get_num_threads()
    more = runs.experiment(train={**TRAIN, "epochs": 2})
    began = more.model_copy(update={"train": more.train.model_copy(update={"threads": before + 1})})
    runs.interrupt(tmp_path, more, after_epoch=1)
    path = next((tmp_path / "checkpoints").glob("epoch_000001/meta.json"))
    assert f'"threads": {before}' in path.read_text()
    torch.set_num_threads(before + 1)
    try:
        assert threads_of(more, tmp_path) == [before]
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert threads_of(began, tmp_path) == [before + 1], "a number that is given counts"
