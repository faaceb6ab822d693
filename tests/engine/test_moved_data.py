"""A data set is its content, wherever it is: a training goes on with moved files, and refuses others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from engine import runs
from PIL import Image

from mbcl import data
from mbcl.config.experiment import Experiment
from mbcl.data.content import content_digest
from mbcl.data.datasets.request import DatasetRequest
from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.engine.setup import load_data
from mbcl.errors import CheckpointError
from mbcl.io.store import LocalStore


def write_images(root: Path, *, changed: bool = False) -> Path:
    """Forty images of 8 x 8 in two classes, and eight to test; ``changed``: one pixel of one of them is another."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 20), ("test", 4)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                if changed and (part, name, index) == ("train", "b", 3):
                    pixels[0, 0, 0] ^= 1
                Image.fromarray(pixels).save(root / part / name / f"{index:02d}.png")
    return root


def experiment(folder: Path, **changes) -> Experiment:
    block = {"name": "image_folder", "dir": str(folder)}
    return runs.experiment(data={**block, **changes.pop("data", {})}, train={"epochs": 1, "batch_size": 8}, **changes)


def test_digest_is_that_of_pixels_labels_and_ids_in_their_order(tmp_path):
    first, moved = write_images(tmp_path / "a"), write_images(tmp_path / "b")
    digest = content_digest(data.load("image_folder", dir=str(first)))
    assert content_digest(data.load("image_folder", dir=str(moved))) == digest
    others = {content_digest(data.load("image_folder", dir=str(write_images(tmp_path / "c", changed=True))))}
    (moved / "train" / "a").rename(moved / "train" / "c")
    (moved / "test" / "a").rename(moved / "test" / "c")
    others.add(content_digest(data.load("image_folder", dir=str(moved))))
    others.add(content_digest(data.load("image_folder", dir=str(first)), [np.arange(40)]))
    others.add(content_digest(data.load("image_folder", dir=str(first), max_samples=20)))
    assert len(others | {digest}) == 5


@pytest.mark.parametrize("max_samples", [None, 20])
def test_digest_of_a_pack_is_that_of_its_files(tmp_path, max_samples):
    folder = write_images(tmp_path / "a")
    of_files = data.load("image_folder", dir=str(folder), max_samples=max_samples)
    assert of_files.pixels_sha256 is None
    digest = content_digest(of_files)
    spec = data.DATASETS["image_folder"]
    spec.folders.pack(DatasetRequest(dir=str(folder)), out=None, force=False, on_progress=lambda done, total: None)
    of_pack = data.load("image_folder", dir=str(folder), max_samples=max_samples)
    assert (of_pack.pixels_sha256 is None) == (max_samples is not None)
    assert content_digest(of_pack) == digest


def test_the_split_of_another_seed_has_the_same_content(tmp_path):
    block = experiment(write_images(tmp_path / "a")).data
    assert load_data(block, seed=0).content() == load_data(block, seed=1).content()


def test_a_training_goes_on_with_moved_data_and_ids(tmp_path):
    folder = write_images(tmp_path / "before")
    np.save(tmp_path / "ids.npy", np.arange(40) % 20)
    content = experiment(folder, data={"apart": str(tmp_path / "ids.npy")})
    more = {"train": content.train.model_copy(update={"epochs": 2})}
    runs.interrupt(tmp_path / "run", content.model_copy(update=more), after_epoch=1)
    folder.rename(tmp_path / "after")
    shutil.move(tmp_path / "ids.npy", tmp_path / "other.npy")
    moved = experiment(tmp_path / "after", data={"apart": str(tmp_path / "other.npy")})
    assert moved.digest == content.digest
    outcome = train(moved.model_copy(update=more), world=World(), store=LocalStore(tmp_path / "run"))
    assert outcome.epochs == 2

    others = experiment(write_images(tmp_path / "others", changed=True), data={"apart": str(tmp_path / "other.npy")})
    words = "made from other images, labels or ids than data.dir .*others holds now: .* the data that it began with"
    with pytest.raises(CheckpointError, match=words):
        train(others.model_copy(update=more), world=World(), store=LocalStore(tmp_path / "run"))
