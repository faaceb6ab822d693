"""Results do not depend on the order in which a data set's files are read, apart from rounding.

Views are functions of the data-set position. So a data set in another order is the same one if each image keeps the
views of its first position: ``Reordered`` gives it these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from engine import runs
from torch import Tensor

from mbcl.config.evaluation import Evaluation
from mbcl.data import ImageSet, make_views
from mbcl.data.samples import TWO_VIEWS
from mbcl.distributed.collectives import World
from mbcl.engine import embedding_pass
from mbcl.engine.embedding_pass import ViewKey, embed, two_views
from mbcl.engine.setup import SplitData, load_data, model_of
from mbcl.evaluation.measures import measure_knn, measure_repr, measure_retrieval
from mbcl.evaluation.subject import Subject
from mbcl.metrics import fit_probe
from mbcl.plan import Embeddings
from mbcl.planner import random_chunks
from mbcl.samplers import build, same_class_share

EXACT = runs.exact()


@dataclass(frozen=True)
class Reordered(ImageSet):
    """An image set whose images have the views of other positions: ``place[i]`` is that of image i."""

    place: Tensor = torch.zeros(0, dtype=torch.int64)

    def views(self, positions: Tensor, *, seed: int, epoch: int, numbers: range = TWO_VIEWS) -> Tensor:
        return make_views(
            self.pixels(positions), self.place[positions], images=self, seed=seed, epoch=epoch, view=numbers
        )


def reordered(images: ImageSet, place: Tensor) -> Reordered:
    return Reordered(**vars(images.subset(place)), place=place)


@pytest.fixture(scope="module")
def data():
    return load_data(runs.experiment(data={"name": "digits"}).data, seed=0)


@pytest.fixture(scope="module")
def model():
    return model_of(EXACT, in_channels=1)


def sorted_by_class(images: ImageSet) -> Tensor:
    return torch.argsort(images.labels, stable=True)


def same_places(images: ImageSet, place: Tensor, embeddings: Embeddings) -> Embeddings:
    """The embeddings of a reordered set, in the first order."""
    return Embeddings(embeddings.z1, embeddings.z2, place[embeddings.indices]).ordered(len(images))


def test_reordered_images_have_the_same_views(data):
    images = data.train.first(50)
    place = sorted_by_class(images)
    rows = torch.tensor([0, 7, 31])
    views = two_views(reordered(images, place), rows, ViewKey(3, 2))
    assert torch.equal(views, two_views(images, place[rows], ViewKey(3, 2)))


def test_random_chunks_are_a_partition_and_a_function_of_seed_epoch_and_round():
    chunks = random_chunks(100, 30, 5, 1, 2)
    assert sorted(map(len, chunks)) == [25, 25, 25, 25]
    assert torch.cat(chunks).sort().values.tolist() == list(range(100))
    assert torch.equal(torch.cat(chunks), torch.cat(random_chunks(100, 30, 5, 1, 2)))
    for keys in ((4, 1, 2), (5, 0, 2), (5, 1, 0)):
        assert not torch.equal(torch.cat(chunks), torch.cat(random_chunks(100, 30, *keys)))


@pytest.mark.parametrize(("mode", "batch_size"), [("eval", 64), ("train", 180)])
def test_embed_does_not_depend_on_the_order(data, model, mode, batch_size):
    """In training mode one chunk has the statistics of all images, in any order."""
    images = data.train.first(180)
    place = sorted_by_class(images)
    options = {"mode": mode, "batch_size": batch_size, "world": World()}
    expected = embed(model, images, ViewKey(0), **options).ordered(180)
    found = same_places(images, place, embed(model, reordered(images, place), ViewKey(0), **options))
    for key in ("z1", "z2"):
        assert runs.largest_difference({key: getattr(found, key)}, {key: getattr(expected, key)}) < runs.EXACT


def test_chunks_of_images_sorted_by_class_hold_all_classes(data):
    """The class means of a chunk would be subtracted by its batch norm."""
    labels = data.train.labels.sort().values
    largest_share = max(
        float(labels[chunk].bincount().max()) / len(chunk) for chunk in random_chunks(len(labels), 256, 0, 0, 0)
    )
    consecutive = float(labels[:216].bincount().max()) / 216
    # Hypergeometric: 216 of 1,294 images with a share of 0.1 have a standard deviation of 0.019.
    assert largest_share < 0.1 + 6 * 0.02 < consecutive


def test_plans_of_images_sorted_by_class_find_the_classes(data, model, monkeypatch):
    """A template a class with noise: in chunks of consecutive positions, a class each, batch norm subtracts it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) // 64
    templates = torch.randint(0, 200, (8, 1, 8, 8), generator=generator)
    pixels = templates[labels] + torch.randint(0, 56, (512, 1, 8, 8), generator=generator)
    images = replace(data.train, images=pixels.to(torch.uint8), labels=labels, rows=None, files=())

    def share_of_pairs(place):
        key = ViewKey(0, augmented=False)
        embeddings = embed(model, reordered(images, place), key, mode="train", batch_size=64, world=World())
        plan = build("kmeans", batch_size=16, pool=None).plan(512, embeddings)
        return same_class_share(plan, labels[place]).value

    shuffled = share_of_pairs(torch.randperm(512, generator=generator))
    assert min(shuffled, share_of_pairs(torch.arange(512))) > 0.5, "four times chance"
    monkeypatch.setattr(embedding_pass, "random_chunks", lambda num, size, *keys: torch.arange(num).split(size))
    assert share_of_pairs(torch.arange(512)) < 0.25, "twice chance"


def _subject(model, data: SplitData, settings: Evaluation) -> Subject:
    return Subject(model, data, EXACT.data, settings, 0, torch.device("cpu"), torch.float64)


def test_evaluation_does_not_depend_on_the_order(data, model):
    parts = SplitData(data.train.first(300), data.validation, data.test.first(150))
    others = {name: getattr(parts, name) for name in ("train", "test")}
    shuffled = replace(parts, **{name: reordered(part, sorted_by_class(part)) for name, part in others.items()})
    settings = Evaluation(split="test", batch_size=64, draws=2)
    model.eval()
    try:
        subject, other = _subject(model, parts, settings), _subject(model, shuffled, settings)
        for measure in (measure_retrieval, measure_knn, measure_repr):
            expected, found = measure(subject), measure(other)
            assert list(found) == list(expected)
            for key, value in expected.items():
                assert found[key] == pytest.approx(value, rel=runs.EXACT), key
        accuracies = [
            fit_probe(each.train_features, each.train.labels).accuracy(each.features, each.images.labels)
            for each in (subject, other)
        ]
        assert accuracies[0] == accuracies[1]
    finally:
        model.train()


def test_chunks_of_a_training_are_those_of_epoch_and_round(tmp_path, monkeypatch):
    keys, chunks = [], embedding_pass.random_chunks

    def recorded(num_samples, batch_size, seed, *rest):
        keys.append((num_samples, *rest))
        return chunks(num_samples, batch_size, seed, *rest)

    monkeypatch.setattr(embedding_pass, "random_chunks", recorded)
    runs.run(World(), tmp_path, runs.exact("osgd", train={"epochs": 2, "eval_every": 2}))
    rounds = 3  # of 2 batches, in 5 steps
    assert keys == [(90, epoch, number) for epoch in range(2) for number in range(rounds)] + [(10, 0, 0)]
