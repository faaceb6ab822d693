"""Metrics as means over draws of the views, the same for every trial of a study."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
import torch
from engine import runs

from mbcl.config.evaluation import Evaluation
from mbcl.engine.embedding_pass import ViewKey, two_views, views_of
from mbcl.engine.setup import load_data, model_of
from mbcl.evaluation import corrupted, evaluate
from mbcl.evaluation.measures import measure_repr, measure_retrieval
from mbcl.evaluation.subject import Subject
from mbcl.io.store import LocalStore
from mbcl.metrics import retrieval
from mbcl.seeding import derive

EXPERIMENT = runs.exact()
NAMES = ["fog", "contrast", "pixelate"]


class Constant:
    """A collapsed encoder."""

    def features(self, x):
        return torch.ones(len(x), 3, dtype=x.dtype)

    def project(self, features):
        return features


@pytest.fixture(scope="module")
def data():
    return load_data(EXPERIMENT.data, seed=0)


@pytest.fixture(scope="module")
def model():
    return model_of(EXPERIMENT, in_channels=1).eval()


def subject(representation, data, seed=0, **settings) -> Subject:
    cpu = torch.device("cpu")
    return Subject(representation, data, EXPERIMENT.data, Evaluation(**settings), seed, cpu, torch.float64)


def within(of: Subject):
    return {key: value for key, value in corrupted.measure(of, 2, NAMES).items() if "within" in key}


class Counting:
    """An encoder that counts the rows that it and its projector take."""

    def __init__(self, model):
        self.model, self.encoded, self.projected = model, 0, 0

    def features(self, x):
        self.encoded += len(x)
        return self.model.features(x)

    def project(self, features):
        self.projected += len(features)
        return self.model.project(features)


def mrr_by_ranks(u, v) -> float:
    """Mean of both directions, by the place of the other view among all in descending order of the cosine."""
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (u, v))
    reciprocal = []
    for scores in (u @ v.T, v @ u.T):
        for row, of_all in enumerate(scores):
            order = of_all.argsort(descending=True).tolist()
            reciprocal.append(1 / (order.index(row) + 1))
    return fmean(reciprocal)


def assert_draws_alike(found, expected):
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert list(found[key]) == pytest.approx(list(values), rel=runs.EXACT), key


def test_draws_do_not_depend_on_seed_number_or_batch_size(model, data):
    expected = measure_retrieval(subject(model, data, draws=4))
    assert {len(values) for values in expected.values()} == {4}
    assert len(set(expected["retrieval/mrr"])) == 4, "each draw has views of its own"
    for seed, draws, batch_size in ((3, 4, 512), (0, 2, 512), (9, 4, 2000), (0, 4, 100)):
        found = measure_retrieval(subject(model, data, seed, draws=draws, batch_size=batch_size))
        assert_draws_alike(found, {key: values[:draws] for key, values in expected.items()})


@pytest.mark.parametrize("batch_size", [40, 512])
def test_draws_equal_a_loop_that_embeds_each_pair_of_views(model, data, batch_size):
    found = measure_retrieval(subject(model, data, draws=5, batch_size=batch_size))["retrieval/mrr"]
    positions, expected = torch.arange(len(data.test)), []
    for draw in range(5):
        pair = []
        for number in (draw, draw + 1):
            key = ViewKey(derive(0, "test evaluation views"))
            with torch.no_grad():
                pair.append(model(views_of(data.test, positions, key, range(number, number + 1)).double()))
        expected.append(mrr_by_ranks(*pair))
    assert list(found) == pytest.approx(expected, rel=runs.EXACT)


@pytest.mark.parametrize(("draws", "batch_size"), [(1, 512), (2, 512), (5, 512), (5, 100), (20, 100)])
def test_each_view_is_embedded_once(model, data, draws, batch_size):
    counting = Counting(model)
    measure_retrieval(subject(counting, data, draws=draws, batch_size=batch_size))
    assert counting.encoded == counting.projected == (draws + 1) * len(data.test)


def test_each_view_of_a_corruption_is_embedded_once(model, data):
    counting = Counting(model)
    within(subject(counting, data, draws=4, batch_size=100, corrupted={"corruptions": NAMES, "meanings": ["within"]}))
    assert counting.encoded == 5 * len(NAMES) * len(data.test)


def test_one_draw_is_that_of_the_seed_as_published(model, data):
    for seed in (0, 3):
        found = measure_retrieval(subject(model, data, seed, draws=1))
        with torch.no_grad():
            key = ViewKey(derive(seed, "test evaluation views"))
            views = two_views(data.test, torch.arange(len(data.test)), key)
            expected = retrieval(*model(views.double()).chunk(2))
        for name, value in expected.items():
            assert found[f"retrieval/{name}"] == pytest.approx([value], rel=runs.EXACT)
        (mrr,) = found["retrieval/mrr"]
        assert mrr == pytest.approx((expected["u2v/mrr"] + expected["v2u/mrr"]) / 2, rel=runs.EXACT)


def test_draws_within_corruptions_are_those_of_one_draw(model, data):
    """Corruptions follow from the seed, the views of several draws do not."""
    block = {"corruptions": NAMES, "meanings": ["within"]}
    expected = within(subject(model, data, draws=3, corrupted=block))
    assert {len(values) for values in expected.values()} == {3}
    first = within(subject(model, data, draws=1, corrupted=block))
    assert_draws_alike(first, {key: values[:1] for key, values in expected.items()})
    in_batches = within(subject(model, data, draws=3, batch_size=50, corrupted=block))
    assert_draws_alike(in_batches, expected)


def test_collapsed_encoder_scores_like_chance_in_every_draw(data):
    of, num = subject(Constant(), data, draws=3, corrupted={"corruptions": NAMES}), len(data.test)
    found = measure_retrieval(of)
    assert found["retrieval/top1"] == pytest.approx([1 / num] * 3)
    assert found["retrieval/mrr"] == pytest.approx([sum(1 / rank for rank in range(1, num + 1)) / num] * 3)
    assert within(of)["corrupted/within/2/top1"] == pytest.approx([1 / len(NAMES)] * 3)


def test_alignment_has_the_one_draw_of_the_seed(model, data):
    assert measure_repr(subject(model, data, 3, draws=5)) == measure_repr(subject(model, data, 3, draws=1))


def test_draws_of_earlier_results_are_measured_again(store, tmp_path):
    """Whose draws had two views each: their requests lack the number of views."""
    out, lines = LocalStore(tmp_path), []
    settings = Evaluation(metrics=["retrieval", "knn"], draws=2, baselines=["pixels"])
    expected = evaluate(store, settings=settings, out=out)
    for path in (tmp_path / "evaluation.json", *(tmp_path / "baselines").glob("*.json")):
        content = json.loads(path.read_text())
        for request in (content["asked"], content["asked"].get("piece", {}), *_requests(content)):
            request.pop("views", None)
        content["metrics"] = {key: 17.0 if "retrieval" in key else value for key, value in content["metrics"].items()}
        path.write_text(json.dumps(content))
    assert evaluate(store, settings=settings, out=out, log=lines.append) == expected
    assert [line.partition(": ")[2].rpartition(": ")[0] for line in lines] == ["retrieval", "retrieval of pixels"]
    one = settings.model_copy(update={"draws": 1})
    evaluate(store, settings=one, out=out)
    assert "views" not in json.loads((tmp_path / "evaluation.json").read_text())["asked"], "as it was published"


def _requests(content):
    return [record["asked"] for record in content.get("pieces", [])]


def test_evaluate_stores_every_draw_and_their_means(store, tmp_path):
    block = {"severities": [1], "corruptions": NAMES}
    settings = Evaluation(metrics=["retrieval", "corrupted", "knn"], draws=3, corrupted=block, baselines=["pixels"])
    metrics = evaluate(store, settings=settings, out=LocalStore(tmp_path))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["metrics"] == metrics
    drawn = [key for key in metrics if "retrieval/" in key or "/within/" in key]
    assert set(content["draws"]) == set(drawn)
    for key in drawn:
        assert len(content["draws"][key]) == 3
        assert metrics[key] == fmean(content["draws"][key])
    assert "baseline/pixels/retrieval/mrr" in drawn
    again = evaluate(store, settings=settings.model_copy(update={"metrics": ["retrieval"]}), out=LocalStore(tmp_path))
    stored = json.loads((tmp_path / "evaluation.json").read_text())["draws"]
    assert stored == {key: content["draws"][key] for key in again}, "of stored pieces, too"
