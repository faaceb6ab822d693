"""``data.apart`` and ``data.together``: every batch that is trained on keeps them, whoever plans it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine import runs

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.data import load
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine.metrics_log import read_rows
from mbcl.engine.setup import data_sizes, load_data
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore


class Recording(Trainer):
    """A trainer that records the positions of its steps."""

    def train(self, folder) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
        batches, step = [], self.learner.step

        def recorded(batch, **rest):  # type: ignore[no-untyped-def]
            batches.append(np.asarray(batch))
            return step(batch, **rest)

        self.learner.step = recorded  # type: ignore[method-assign]
        self.run()
        return batches


def experiment(sampler: object, planner: dict[str, object] | None = None, **data: object) -> Experiment:
    train = {"epochs": 2, "batch_size": 8, "eval_every": 2}
    return runs.experiment(
        sampler, train=train, planner=planner or {}, data={"name": "digits", "max_samples": 240, **data}
    )


@pytest.mark.parametrize(
    "sampler", [{"name": "shuffle"}, {"name": "kmeans", "pool": 16}, {"name": "osgd", "k": 2, "q": 1}]
)
def test_batches_are_of_one_class_each(sampler, tmp_path) -> None:  # type: ignore[no-untyped-def]
    content = experiment(sampler, planner={"warmup_epochs": 1}, together="labels")
    trainer = Recording(content, store=LocalStore(tmp_path), world=World())
    labels = trainer.learner.images.labels.numpy()
    sizes = np.bincount(labels)
    assert trainer.sizes.steps_per_epoch == (sizes // 8).sum() < len(labels) // 8
    batches = trainer.train(tmp_path)
    assert len(batches) == 2 * trainer.sizes.steps_per_epoch
    assert all(len(set(labels[batch])) == 1 for batch in batches)


@pytest.mark.parametrize("sampler", [{"name": "fixed"}, {"name": "refined", "pool": 80}])
def test_ids_of_a_file_follow_the_split(sampler, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Ids are those of all 240 images; 216 are trained on, and each keeps its own."""
    path = str(tmp_path / "ids.npy")
    ids = np.array([f"document {number // 4}" for number in range(240)])
    np.save(path, ids)
    content = experiment(sampler, apart=path)
    data = load_data(content.data, seed=content.seed)
    whole = load("digits", max_samples=240).train
    pixels = {whole.pixels(torch.tensor([place])).numpy().tobytes(): place for place in range(240)}
    assert len(pixels) == 240
    places = [pixels[data.train.pixels(torch.tensor([place])).numpy().tobytes()] for place in range(len(data.train))]
    np.testing.assert_array_equal(data.apart, ids[places])
    trainer = Recording(content, store=LocalStore(tmp_path), world=World())
    batches = trainer.train(tmp_path)
    assert all(len(set(np.asarray(data.apart)[batch])) == len(batch) for batch in batches)
    row = read_rows(LocalStore(tmp_path))[-1]
    assert row["plan/conflicts"] == (0 if sampler["name"] == "refined" else None)


def test_ids_that_do_not_fit_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ConfigError, match=r"x: data.apart: found 'classes', allowed: labels, or the path of an .npy file"
    ):
        validate(Experiment, {"data": {"apart": "classes"}}, "x")
    path = str(tmp_path / "ids.npy")
    np.save(path, np.arange(10))
    with pytest.raises(
        ConfigError, match=r"data.together: .*ids.npy: expected one .* of 240 training images, found \(10,\)"
    ):
        load_data(experiment("shuffle", together=path).data, seed=0)
    with pytest.raises(ConfigError, match=r"^data.together: .*absent.npy: cannot be read"):
        load_data(experiment("shuffle", together=str(tmp_path / "absent.npy")).data, seed=0)
    np.save(path, np.arange(240))
    content = experiment("shuffle", together=path)
    with pytest.raises(ConfigError, match="batch_size 8 is above the 1 samples of the largest of 216 sources"):
        data_sizes(content, load_data(content.data, seed=0))
