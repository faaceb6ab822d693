"""Every metric of an evaluation on a real checkpoint, against slow obvious oracles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from data.official import write_cifar, write_corrupted_archive
from engine import runs
from sklearn.neighbors import KNeighborsClassifier

from mbcl.config.evaluation import Evaluation
from mbcl.data import ImageSet, clean_views, corrupt
from mbcl.distributed.collectives import World
from mbcl.engine.embedding_pass import ViewKey, set_statistics, views_of
from mbcl.engine.gradient_parity import relative_error
from mbcl.engine.setup import load_data, model_of
from mbcl.errors import ConfigError, DataError
from mbcl.evaluation import INITIAL, evaluate, find_weights
from mbcl.evaluation.baselines import CachedMetrics, Pixels, baseline
from mbcl.evaluation.subject import Subject
from mbcl.io.store import LocalStore
from mbcl.seeding import derive


@pytest.fixture(scope="module")
def model(store):
    return find_weights(store).model(in_channels=1)


@pytest.fixture(scope="module")
def data():
    return load_data(runs.experiment().data, seed=0)


def settings(*metrics: str, **blocks) -> Evaluation:
    return Evaluation(metrics=list(metrics), **blocks)


@torch.no_grad()
def features(model, part):
    return model.features(clean_views(part.pixels(torch.arange(len(part))), images=part).double()).numpy()


def test_knn_equals_scikit_learn(store, model, data):
    metrics = evaluate(store, settings=settings("knn", knn={"k": 5, "weighting": "uniform"}))
    oracle = KNeighborsClassifier(5, metric="cosine").fit(features(model, data.train), data.train.labels)
    assert metrics == {"knn/top1": pytest.approx(oracle.score(features(model, data.test), data.test.labels))}


def test_probe_beats_chance_and_chooses_its_penalty(store):
    metrics = evaluate(store, settings=settings("probe"))
    assert 0.4 < metrics["probe/top1"] <= 1, "four times chance"
    assert evaluate(store, settings=settings("probe"), force=True) == metrics
    one = evaluate(store, settings=settings("probe", probe={"penalties": [100.0]}))
    assert one["probe/top1"] < metrics["probe/top1"]


def test_repr_equals_formulas_in_numpy(store, model, data):
    metrics = evaluate(store, settings=settings("repr"))
    x = features(model, data.test)
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum()
    assert metrics["repr/effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=runs.EXACT)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)[~np.eye(len(x), dtype=bool)]
    assert metrics["repr/uniformity"] == pytest.approx(np.log(np.exp(-2 * squared).mean()), rel=runs.EXACT)
    assert 0 < metrics["repr/alignment"] < 2


def loop_within(model, test, severity: int, corruptions: list[str], draw: int) -> float:
    """One image at a time, in plain loops."""
    positions = torch.arange(len(test))
    seed = derive(0, "test corruptions")
    views = []
    for name in corruptions:
        pixels = corrupt(test.images, corruption=name, severity=severity, seed=seed, positions=positions)
        key = ViewKey(derive(0, f"test corrupted views of {name}"))
        with torch.no_grad():
            corrupted = test.__class__(**{**vars(test), "images": pixels})
            both = model(views_of(corrupted, positions, key, range(draw, draw + 2)).double())
        views.append((both / both.norm(dim=1, keepdim=True)).numpy().reshape(2, len(test), -1))
    hits = []
    for image in range(len(test)):
        for row in range(len(corruptions)):
            scores = [views[row][0, image] @ views[column][1, image] for column in range(len(corruptions))]
            hits.append(int(np.argmax(scores)) == row)
    return float(np.mean(hits))


def test_corrupted_within_equals_plain_loops(store, model, data):
    corruptions = ["gaussian_noise", "fog", "contrast", "pixelate"]
    block = {"severities": [1, 4], "corruptions": corruptions, "meanings": ["within"]}
    metrics = evaluate(store, settings=settings("corrupted", corrupted=block, draws=3, batch_size=100))
    assert set(metrics) == {f"corrupted/within/{s}/{d}top1" for s in (1, 4) for d in ("", "u2v/", "v2u/")}
    for severity in (1, 4):
        u2v, v2u = (metrics[f"corrupted/within/{severity}/{d}/top1"] for d in ("u2v", "v2u"))
        expected = [loop_within(model, data.test, severity, corruptions, draw) for draw in range(3)]
        assert u2v == pytest.approx(np.mean(expected))
        assert len(set(expected)) > 1, "each draw has views of its own"
        assert metrics[f"corrupted/within/{severity}/top1"] == pytest.approx((u2v + v2u) / 2)


def test_corrupted_clean_equals_cosine_similarity_in_numpy(store, model, data):
    block = {"severities": [3], "corruptions": ["fog", "shot_noise"], "meanings": ["clean"]}
    chosen = settings("corrupted", corrupted=block)
    metrics = evaluate(store, settings=chosen)
    test, each = data.test, []
    with torch.no_grad():
        originals = model(clean_views(test.images, images=test).double()).numpy()
        for name in ("fog", "shot_noise"):
            pixels = corrupt(
                test.images,
                corruption=name,
                severity=3,
                seed=derive(0, "test corruptions"),
                positions=torch.arange(len(test)),
            )
            queries = model(clean_views(pixels, images=test).double()).numpy()
            cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
                originals / np.linalg.norm(originals, axis=1, keepdims=True)
            ).T
            each.append(float((cosine.argmax(axis=1) == np.arange(len(test))).mean()))
            assert metrics[f"corrupted/clean/{name}/3/top1"] == pytest.approx(each[-1])
    assert metrics["corrupted/clean/mean/3/top1"] == pytest.approx(np.mean(each))
    assert 0 < metrics["corrupted/clean/mean/3/top1"] < 1


def test_corrupted_dir_reads_and_checks_the_official_images(tmp_path):
    write_cifar(tmp_path / "cifar", "cifar10")
    content = runs.experiment(
        data={"name": "cifar10", "dir": str(tmp_path / "cifar")}, train={"epochs": 1, "batch_size": 8}
    )
    with pytest.warns(UserWarning, match="the official set has"):
        runs.run(World(), tmp_path / "run", content)
    with pytest.warns(UserWarning, match="the official set has"):
        test = load_data(content.data, seed=0).test
    write_corrupted_archive(tmp_path / "c", test.images.numpy(), test.labels.numpy())
    store = LocalStore(tmp_path / "run")
    chosen = settings("corrupted", corrupted={"dir": str(tmp_path / "c"), "severities": [1, 5]}, draws=2)
    with pytest.warns(UserWarning, match="the official set has"):
        metrics = evaluate(store, settings=chosen)
    clean = {f"corrupted/clean/{name}/{s}/top1" for name in ("fog", "snow", "mean") for s in (1, 5)}
    assert set(metrics) == clean | {f"corrupted/within/{s}/{d}top1" for s in (1, 5) for d in ("", "u2v/", "v2u/")}
    labels = np.load(tmp_path / "c" / "labels.npy")
    np.save(tmp_path / "c" / "labels.npy", (labels + 1) % 10)
    log_lines = []
    with (
        pytest.warns(UserWarning, match="the official set has"),
        pytest.raises(DataError, match="evaluation.corrupted.dir: .*labels.npy: 8 labels are not those of the clean"),
    ):
        evaluate(
            store, settings=settings("knn", "corrupted", corrupted=chosen.corrupted), force=True, log=log_lines.append
        )
    assert log_lines == [], "refused before anything is measured"
    missing = settings("corrupted", corrupted={"dir": str(tmp_path / "c"), "corruptions": ["fog", "frost"]})
    with pytest.raises(ConfigError, match="has no 'frost' of severity 1; .*known: fog, snow"):
        evaluate(store, settings=missing)


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_and_the_random_baseline_have_the_memory_format_of_training(tmp_path, channels_last):
    runs.run(World(), tmp_path, runs.experiment(train={"channels_last": channels_last, "epochs": 1}))
    formats = []

    def note(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and min(module.weight.shape[1:]) > 1:  # otherwise both formats are one
            formats.append(module.weight.is_contiguous(memory_format=torch.channels_last))

    with torch.nn.modules.module.register_module_forward_pre_hook(note):
        evaluate(LocalStore(tmp_path), settings=settings("knn"))
        assert set(formats) == {channels_last}
        formats.clear()
        cache = LocalStore(tmp_path / "kept")
        evaluate(LocalStore(tmp_path), settings=settings("knn", baselines=["random"]), baselines=cache, force=True)
    assert set(formats) == {channels_last}


def test_the_cached_random_baseline_depends_on_the_memory_format(tmp_path):
    last, contiguous = (runs.experiment(train={"channels_last": value}) for value in (True, False))
    for kind, expected in (("random", None), ("pixels", {"metrics": {"knn/top1": 0.5}, "draws": {}})):
        cached = CachedMetrics(LocalStore(tmp_path), kind, last, {"metric": "knn"})
        cached.write({"metrics": {"knn/top1": 0.5}, "draws": {}})
        assert cached.read() is not None
        assert CachedMetrics(LocalStore(tmp_path), kind, contiguous, {"metric": "knn"}).read() == expected


def test_baselines_are_measured_once_and_cached(store, tmp_path):
    cache, chosen = LocalStore(tmp_path / "kept"), settings("retrieval", "knn", baselines=["random", "pixels"], draws=2)
    metrics = evaluate(store, settings=chosen, out=LocalStore(tmp_path / "a"), baselines=cache)
    alone = settings("retrieval", "knn", draws=2)
    model_metrics = evaluate(store, settings=alone)
    initial = evaluate(store, checkpoint=INITIAL, settings=alone, out=LocalStore(tmp_path / "i"))
    assert model_metrics == {key: value for key, value in metrics.items() if not key.startswith("baseline/")}
    assert {f"baseline/random/{key}": value for key, value in initial.items()}.items() <= metrics.items()
    assert metrics["baseline/pixels/knn/top1"] > 0.7
    files = sorted((tmp_path / "kept").iterdir())
    pieces = ["pixels-knn", "pixels-retrieval", "random-knn", "random-retrieval"]
    assert [file.name.rpartition("-")[0] for file in files] == pieces
    content = json.loads(files[0].read_text())
    content["metrics"]["knn/top1"] = 17.0
    files[0].write_text(json.dumps(content))
    reused = evaluate(store, settings=chosen, out=LocalStore(tmp_path / "b"), baselines=cache)
    assert reused == {**metrics, "baseline/pixels/knn/top1": 17.0}, "kept ones are not measured again"
    files[0].write_text("{")
    assert evaluate(store, settings=chosen, out=LocalStore(tmp_path / "c"), baselines=cache) == metrics
    files[0].write_text(json.dumps(content))
    assert evaluate(store, settings=chosen, out=LocalStore(tmp_path / "d"), baselines=cache, force=True) == metrics
    other = chosen.model_copy(update={"similarity": "dot"})
    evaluate(store, settings=other, out=LocalStore(tmp_path / "e"), baselines=cache)
    names = sorted(file.name.rpartition("-")[0] for file in (tmp_path / "kept").iterdir())
    assert names == sorted([*pieces, "pixels-retrieval", "random-retrieval"]), "the vote does not compare projections"


def test_initial_weights_are_known_by_their_content(tmp_path):
    """A file that was replaced under the same name must not give the metrics of the earlier one."""
    file, cache = tmp_path / "encoder.safetensors", LocalStore(tmp_path / "cache")

    def write(seed):
        content = runs.experiment().model_copy(update={"seed": seed})
        safetensors.torch.save_file(model_of(content, in_channels=1).encoder.state_dict(), file)

    write(1)
    encoder = {"name": "resnet_small", "widths": [8, 16], "weights": str(file)}
    folder = LocalStore(tmp_path / "run")
    runs.run(World(), folder.folder, runs.experiment(encoder=encoder, train={"epochs": 1, "batch_size": 16}))
    measured = []

    def measure():
        lines = []
        options = {"settings": settings("knn", "retrieval", baselines=["random"], draws=1), "log": lines.append}
        trained = evaluate(folder, out=LocalStore(tmp_path / "trained"), baselines=cache, **options)
        options["settings"] = settings("knn", "retrieval", draws=1)
        initial = evaluate(folder, checkpoint=INITIAL, out=LocalStore(tmp_path / "initial"), **options)
        measured.append(len(lines))
        return trained, initial

    first = measure()
    assert measure() == first
    write(2)
    second = measure()
    assert {f"baseline/random/{key}": value for key, value in second[1].items()}.items() <= second[0].items()
    for before, after in zip(first, second, strict=True):
        own = {key for key in before if before[key] != after[key]}
        assert own, "the new file was measured"
        assert all(key.startswith("baseline/") for key in own) or after is second[1]
    assert measured == [6, 0, 4], "the trained weights are not measured again"


def test_pixels_features_have_at_most_32_pixels_a_side():
    x = torch.randn(3, 2, 224, 224)
    assert Pixels().features(x).shape == (3, 2 * 32 * 32)
    assert torch.equal(Pixels().features(x[..., :8, :8]), x[..., :8, :8].flatten(1))


def test_split_selects_the_measured_images(store, data):
    for split, part in (("validation", data.validation), ("train", data.train)):
        metrics = evaluate(store, settings=settings("retrieval", split=split))
        assert 1 <= metrics["retrieval/u2v/mean_rank"] <= len(part)
    initial = model_of(runs.experiment(), in_channels=1)
    assert not torch.equal(next(initial.parameters()), next(find_weights(store).model(in_channels=1).parameters()))


def test_subject_reads_clean_images_through_the_image_set(data, monkeypatch):
    """Images that do not fit on the device stay on the host, and the set moves every batch."""
    requested, pixels = [], ImageSet.pixels
    monkeypatch.setattr(ImageSet, "pixels", lambda self, rows: requested.append(len(rows)) or pixels(self, rows))
    config, host = runs.experiment().data, torch.device("cpu")
    subject = Subject(Pixels(), data, data=config, settings=settings("knn"), seed=0, device=host)
    assert len(subject.features) == sum(requested) == len(data.test)


@pytest.mark.parametrize("num_images", [180, 1294])
def test_untrained_model_has_the_statistics_of_the_training_images(num_images):
    """The first batch norm's input does not depend on other layers: its statistics are those of all images."""
    content = runs.exact(data={"name": "digits", "max_samples": round(num_images / 0.9)})
    train = load_data(content.data, seed=0).train.first(num_images)
    untrained = baseline("random", content, train=train, device=torch.device("cpu"))
    layers = [layer for layer in untrained.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert not untrained.training
    assert all(not layer.training and layer.momentum == 0.1 for layer in layers)
    inputs: list[torch.Tensor] = []
    layers[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        untrained(clean_views(train.pixels(torch.arange(num_images)), images=train).double())
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
    # Chunks of 215 and 216 images have equal weights, and their variances are around their own means.
    bound = runs.EXACT if num_images <= 256 else 0.01
    assert relative_error(layers[0].running_mean, mean) < bound
    assert relative_error(layers[0].running_var, variance) < bound


def test_untrained_model_is_a_function_of_the_seed():
    content = runs.exact()
    train = load_data(content.data, seed=0).train
    first, again = (baseline("random", content, train=train, device=torch.device("cpu")) for _ in range(2))
    assert runs.equal(first.state_dict(), again.state_dict())
    initial = model_of(content, in_channels=1)
    assert runs.equal(dict(first.named_parameters()), dict(initial.named_parameters())), "no weight changes"


def test_untrained_model_without_batch_norm_stays_as_it_is():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.Dropout()).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = load_data(runs.exact().data, seed=0).train
    set_statistics(model, len(images), lambda rows: clean_views(images.pixels(rows), images=images), seed=0)
    assert runs.equal(model.state_dict(), before)
    assert not model.training
