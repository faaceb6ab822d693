"""Trainings on pairs: what the engine does for images holds for them."""

from __future__ import annotations

import json

import gloo
import numpy as np
import pytest
import torch
from engine import runs

from mbcl.config.evaluation import Evaluation
from mbcl.distributed.collectives import World
from mbcl.engine import check_model, load_data, memory_need
from mbcl.engine import checkpoint as checkpoints
from mbcl.errors import CheckpointError, ConfigError
from mbcl.evaluation import evaluate, find_weights
from mbcl.export import export
from mbcl.export import load as load_export
from mbcl.io.store import LocalStore
from mbcl.metrics import both_directions, knn, retrieval

LATENT, SHIFT = 6, 0.5
CACHED = {"source": "cached", "batch_size": 64}
CHUNKS = {"accumulation": {"mode": "cached", "chunk_size": 8}}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """Pairs of different widths with a common cause, of 8 classes and 50 files."""
    generator = np.random.default_rng(0)
    labels = generator.integers(8, size=250)
    cause = generator.normal(size=(8, LATENT))[labels] + SHIFT * generator.normal(size=(250, LATENT))
    x1, x2 = (cause @ generator.normal(size=(LATENT, width)) for width in (12, 9))
    path = tmp_path_factory.mktemp("pairs") / "made.npz"
    np.savez(path, x1=x1, x2=x2, labels=labels, groups=np.arange(250) // 5)
    return str(path)


def experiment(file: str, sampler="shuffle", *, dropout: float = 0.1, precision: str = "float64", **changes):
    """150 training pairs or so, in float64 with a tower for each side and no batch norm."""
    train = {"epochs": 2, "batch_size": 16, "precision": precision, **changes.pop("train", {})}
    content = {
        "data": {"name": "pairs", "dir": file, "dropout": dropout, "validation": 0.2},
        "encoder": {"name": "pair_mlp", "width": 16, "dim": 8},
        "projector": {"layers": 0},
        "objective": {"name": "clip", "temperature": 0.2},
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
        "schedule": {"warmup_epochs": 0, "scale_lr": "none"},
    }
    return runs.experiment(sampler, **{**content, **changes}, train=train)


CASES = {
    "shuffle": ("shuffle", {}),
    "refined": ({"name": "refined", "pool": 64}, {}),
    "osgd, sogclr, a shared head": ("osgd", {"objective": {"name": "sogclr"}, "projector": {"hidden": 16, "dim": 8}}),
    "cached embeddings": ("spectral", {"embeddings": CACHED}),
    "ahead": ({"name": "refined", "pool": 64}, {"planner": {"overlap": 1}}),
    "running statistics": ("spectral", {"embeddings": {"mode": "eval"}, "projector": {"hidden": 16, "dim": 8}}),
    "in chunks": ({"name": "refined", "pool": 64}, {"train": CHUNKS}),
}


@pytest.mark.parametrize("name", CASES)
def test_training_on_pairs_resumes_bit_by_bit(tmp_path, file, name):
    sampler, changes = CASES[name]
    train = {"checkpoint_steps": 3, **changes.get("train", {})}
    content = experiment(file, sampler, precision="float32", **{**changes, "train": train})
    _, expected, rows = runs.run(World(), tmp_path / "uncut", content)
    runs.interrupt(tmp_path / "cut", content, after_step=5)
    _, state, _ = runs.run(World(), tmp_path / "cut", content)
    assert runs.equal(state, expected)
    assert rows[-1]["val/retrieval/mrr"] > 0
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_training_on_pairs_on_two_workers_equals_one(tmp_path, file, name):
    sampler, changes = CASES[name]
    content = experiment(file, sampler, **changes)
    expected = runs.run(World(), tmp_path / "one", content)
    for trained in gloo.run(runs.run_with_children, 2, str(tmp_path / "two"), content):
        runs.assert_alike(trained, expected)


def test_training_on_pairs_learns_across_sides(tmp_path, file):
    """With chance at one in 50 test pairs; both sides have the same cause, so a linear map would do."""
    content = experiment(file, dropout=0.0, train={"epochs": 30})
    runs.run(World(), tmp_path, content)
    metrics = evaluate(LocalStore(tmp_path))
    assert metrics["retrieval/mrr"] > 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory, file):
    folder = tmp_path_factory.mktemp("trained")
    content = experiment(file)
    runs.run(World(), folder, content)
    return folder, content


def features(folder, part, number: int) -> torch.Tensor:
    """The projections of one side, by the tower of that side alone."""
    model = find_weights(LocalStore(folder)).model(in_channels=(12, 9))
    x = (part.x1, part.x2)[number - 1] if part.rows is None else (part.x1, part.x2)[number - 1][part.rows]
    with torch.no_grad():
        return model.encoder.side(number)(x.double())


def test_evaluation_of_pairs_retrieves_across_sides_in_one_draw(trained, tmp_path):
    folder, content = trained
    lines: list[str] = []
    metrics = evaluate(LocalStore(folder), out=LocalStore(tmp_path), log=lines.append)
    test = load_data(content.data, seed=0).test
    expected = retrieval(features(folder, test, 1), features(folder, test, 2))
    assert metrics["retrieval/u2v/mrr"] == pytest.approx(expected["u2v/mrr"], rel=1e-9)
    assert metrics["retrieval/v2u/top1"] == pytest.approx(expected["v2u/top1"], rel=1e-9)
    assert metrics["retrieval/mrr"] == pytest.approx(both_directions(expected)["mrr"], rel=1e-9)
    draws = json.loads((tmp_path / "evaluation.json").read_text())["draws"]
    assert {len(values) for values in draws.values()} == {1}, "20 draws would be the same"
    assert "one draw, because pairs are measured as they are" in lines[0]


def test_validation_of_pairs_is_retrieval_across_sides(trained):
    folder, content = trained
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    validation = load_data(content.data, seed=0).validation
    expected = both_directions(retrieval(features(folder, validation, 1), features(folder, validation, 2), ks=(1,)))
    assert row["val/retrieval/mrr"] == pytest.approx(expected["mrr"], rel=1e-9)


def test_class_metrics_of_pairs_use_the_features_of_both_sides(trained, tmp_path):
    folder, content = trained
    settings = Evaluation(metrics=["knn", "probe", "repr"], baselines=["random"])
    metrics = evaluate(LocalStore(folder), out=LocalStore(tmp_path), settings=settings)
    data = load_data(content.data, seed=0)
    train, test = (
        torch.cat([features(folder, part, side) for side in (1, 2)], dim=1) for part in (data.train, data.test)
    )
    predicted = knn(train, data.train.labels, test, **settings.knn.model_dump())
    assert metrics["knn/top1"] == float((predicted == data.test.labels).double().mean())
    assert 0 <= metrics["probe/top1"] <= 1
    assert metrics["repr/effective_rank"] > 1
    assert 0 <= metrics["baseline/random/knn/top1"] <= 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"metrics": ["corrupted"]}, "evaluation.metrics: corrupted is for images, but pairs holds pairs"),
        ({"baselines": ["pixels"]}, "evaluation.baselines: pixels is for images, but pairs holds pairs"),
        ({"metrics": ["knn"], "knn": {"k": 1000}}, "is above the .* training pairs of pairs"),
    ],
)
def test_evaluation_that_pairs_have_not_is_refused(trained, tmp_path, file, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(LocalStore(trained[0]), out=LocalStore(tmp_path), settings=Evaluation(**settings))
    with pytest.raises(ConfigError, match=message):
        runs.run(World(), tmp_path / "training", experiment(file, evaluation=settings))


def test_pairs_without_labels_have_no_classes(tmp_path):
    path = tmp_path / "unlabelled.npz"
    np.savez(path, x1=np.ones((40, 3)), x2=np.ones((40, 3)))
    for changes, message in (
        (
            {"evaluation": {"metrics": ["probe"]}},
            "probe needs labels, but the pairs of pairs are in files without labels",
        ),
        (
            {"data": {"name": "pairs", "dir": str(path), "apart": "labels"}},
            "data.apart: found labels, but pairs has none",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            runs.run(World(), tmp_path / "run", experiment(str(path), **changes))


def test_labels_of_pairs_keep_them_apart(tmp_path, file):
    data = {"name": "pairs", "dir": file, "apart": "labels"}
    content = experiment(file, {"name": "refined", "pool": 64}, data=data, train={"epochs": 1, "batch_size": 4})
    _, _, rows = runs.run(World(), tmp_path, content)
    assert rows[0]["plan/conflicts"] == 0


def test_export_of_pairs_loads_and_maps_each_side(trained, tmp_path):
    folder, content = trained
    record = export(LocalStore(folder), out=LocalStore(tmp_path / "out"))
    assert record["build"]["in_channels"] == (12, 9)
    assert record["input"]["widths"] == [12, 9]
    model = load_export(tmp_path / "out")
    test = load_data(content.data, seed=0).test
    views = test.clean(torch.arange(len(test))).double()
    assert torch.equal(model(views)[: len(test)], features(folder, test, 1))
    metrics = evaluate(LocalStore(tmp_path / "out"), out=LocalStore(tmp_path / "evaluated"))
    assert metrics == evaluate(LocalStore(folder), out=LocalStore(tmp_path / "reference"))


def test_memory_of_a_training_on_pairs_is_counted(file):
    content = experiment(file, precision="float32")
    data = load_data(content.data, seed=0)
    need = memory_need(content, data, check_model(content, data))
    numbers = len(data.train) * (12 + 9) * 4
    assert numbers < need.host < 4 * numbers
    # each of 32 rows saves its 12 inputs, 16 pre-activations and 16 activations at least, in float32
    assert need.activations >= 32 * (12 + 16 + 16) * 4


def test_checkpoints_of_other_arrays_are_refused(trained, tmp_path, file):
    """Neither a training goes on with other pairs, nor is it evaluated on them as if they were its own."""
    path = tmp_path / "made.npz"
    path.write_bytes(open(file, "rb").read())
    content = experiment(str(path), train={"epochs": 2})
    runs.interrupt(tmp_path / "run", content, after_epoch=1)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"x1": arrays["x1"] + 1})
    with pytest.raises(CheckpointError, match=r"was made from other data: arrays was [0-9a-f]{16}, now [0-9a-f]{16}"):
        runs.run(World(), tmp_path / "run", content)
    with pytest.raises(ConfigError, match="pairs is not what epoch_000001 was trained on: arrays was"):
        evaluate(LocalStore(tmp_path / "run"), out=LocalStore(tmp_path / "evaluated"))
    np.savez(path, **arrays)
    runs.run(World(), tmp_path / "run", content)
    assert checkpoints.names(LocalStore(tmp_path / "run"))[-1] == "epoch_000002"
    assert "sources: arrays" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": {"name": "resnet_small"}}, "encoder: resnet_small encodes images, but these data are pairs"),
        ({"data": {"name": "digits"}}, "encoder: pair_mlp encodes pairs, but these data are images"),
        ({"train": {"channels_last": True}}, "pair_mlp cannot take pairs of"),
    ],
)
def test_encoder_of_the_other_kind_is_refused(tmp_path, file, changes, message):
    with pytest.raises(ConfigError, match=message):
        runs.run(World(), tmp_path, experiment(file, **changes))


@pytest.mark.parametrize(
    "block, message",
    [
        (
            {"name": "digits", "dropout": 0.1},
            "data.dropout: found 0.1, but digits has no such key; allowed for: code_docs, pairs",
        ),
        ({"name": "pairs", "dim": 64}, "data.dim: found 64, but pairs has no such key; allowed for: code_docs"),
        ({"name": "pairs", "image_size": 32}, "data.image_size: found 32, but pairs holds no images"),
        ({"name": "pairs", "dropout": 1.0}, "data.dropout: Input should be less than 1, found 1.0"),
    ],
)
def test_keys_of_other_data_are_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        runs.experiment(data=block)


def test_keys_of_pairs_are_no_part_of_experiments_on_images():
    assert not {"dim", "dropout", "test"} & set(runs.experiment().resolved()["data"])
    assert runs.experiment(data={"name": "code_docs"}).resolved()["data"]["dim"] == 256
