"""The evaluation of a checkpoint: its metrics, and when they are measured again."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
import torch
from engine import runs
from evaluation.trained import CONTENT

from mbcl.config.evaluation import Evaluation
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.embedding_pass import ViewKey, views_of
from mbcl.engine.setup import load_data, model_of
from mbcl.errors import CheckpointError, ConfigError
from mbcl.evaluation import evaluate
from mbcl.io.store import LocalStore
from mbcl.metrics import retrieval
from mbcl.seeding import derive


def test_evaluate_measures_the_checkpoint_on_the_test_split(store):
    model = model_of(CONTENT, in_channels=1)
    model.load_state_dict(checkpoints.latest(store).state["model"])
    test = load_data(CONTENT.data, seed=0).test
    positions, found = torch.arange(len(test)), []
    for draw in range(20):
        with torch.no_grad():
            views = views_of(test, positions, ViewKey(derive(0, "test evaluation views")), range(draw, draw + 2))
            found.append(retrieval(*model.eval()(views.double()).chunk(2)))
    expected = {f"retrieval/{key}": fmean(each[key] for each in found) for key in found[0]}
    for key in ("mrr", "top1"):
        expected[f"retrieval/{key}"] = (expected[f"retrieval/u2v/{key}"] + expected[f"retrieval/v2u/{key}"]) / 2
    assert evaluate(store) == pytest.approx(expected, rel=runs.EXACT)
    assert len(test) == 359


def test_evaluate_returns_the_stored_evaluation(store):
    first = evaluate(store)
    before = (store.folder / "evaluation.json").stat().st_mtime_ns
    assert evaluate(store) == first
    assert (store.folder / "evaluation.json").stat().st_mtime_ns == before


def test_evaluate_measures_again_for_other_settings(store):
    cosine = evaluate(store)
    dot = evaluate(store, settings=Evaluation(similarity="dot"))
    assert dot != cosine
    assert json.loads((store.folder / "evaluation.json").read_text())["asked"]["settings"]["similarity"] == "dot"
    small = evaluate(store, settings=Evaluation(batch_size=7))
    assert small == pytest.approx(cosine, rel=runs.EXACT)


def test_evaluate_measures_only_new_pieces(store, tmp_path):
    out, log_lines = LocalStore(tmp_path), []

    def measure(force=False, earlier=None, **block):
        log_lines.clear()
        into = LocalStore(tmp_path / "elsewhere") if earlier else out
        settings = Evaluation.model_validate({"draws": 2, **block})
        metrics = evaluate(store, settings=settings, out=into, earlier=earlier, force=force, log=log_lines.append)
        return metrics, [line.partition(": ")[2].rpartition(": ")[0] for line in log_lines]

    corrupted = {"corruptions": ["fog", "contrast"]}
    first, names = measure(metrics=["knn", "corrupted"], corrupted={**corrupted, "severities": [2, 1]})
    assert names == ["knn", "corrupted, severity 2", "corrupted, severity 1"]
    larger = {"metrics": ["repr", "corrupted", "knn"], "corrupted": {**corrupted, "severities": [1, 3]}}
    metrics, names = measure(**larger)
    assert names == ["repr", "corrupted, severity 3"]
    assert metrics["knn/top1"] == first["knn/top1"]
    assert not [key for key in metrics if "/2/" in key]
    assert measure(**larger) == (metrics, [])
    back, names = measure(metrics=["knn", "corrupted"], corrupted={**corrupted, "severities": [2, 1]})
    assert (back, names) == (first, []), "stored metrics outside of a request are kept"
    assert list(back) == list(first)
    assert measure(metrics=["knn"], knn={"k": 3})[1] == ["knn"]
    assert measure(metrics=["knn"], split="validation")[1] == ["knn"]
    copied, names = measure(earlier=out, **larger)
    assert (copied, names) == (metrics, [])
    assert json.loads((tmp_path / "elsewhere" / "evaluation.json").read_text())["metrics"] == metrics
    assert measure(force=True, **larger) == (metrics, ["repr", "corrupted, severity 1", "corrupted, severity 3", "knn"])
    path = tmp_path / "evaluation.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'))
    assert measure(**larger)[1] == ["repr", "corrupted, severity 1", "corrupted, severity 3", "knn"]


def test_evaluate_keeps_pieces_measured_before_an_interrupt(store, tmp_path):
    out, log_lines = LocalStore(tmp_path), []

    def interrupt(line: str) -> None:
        log_lines.append(line)
        if len(log_lines) == 3:
            raise KeyboardInterrupt

    settings = Evaluation(metrics=["knn", "repr", "probe"])
    with pytest.raises(KeyboardInterrupt):
        evaluate(store, settings=settings, out=out, log=interrupt)
    assert out.list() == ["evaluation.part.json"], "a partial evaluation has another name"
    log_lines.clear()
    metrics = evaluate(store, settings=settings, out=out, log=log_lines.append)
    assert [line.partition(": ")[2].partition(":")[0] for line in log_lines] == ["probe"]
    assert metrics == evaluate(store, settings=settings, out=LocalStore(tmp_path / "whole"))
    assert out.list() == ["evaluation.json", "whole"]


def test_evaluate_embeds_views_once(store, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("mbcl.evaluation.subject.views_of", lambda *a: calls.append(a) or views_of(*a))
    evaluate(store, settings=Evaluation(metrics=["retrieval", "repr"], draws=1), out=LocalStore(tmp_path))
    assert len(calls) == 1, "the 359 images are one batch"


def test_evaluate_refuses_embeddings_that_are_not_finite(store, tmp_path):
    checkpoint = checkpoints.latest(store)
    model = dict(checkpoint.state["model"])
    model["encoder.bn1.weight"] = torch.full_like(model["encoder.bn1.weight"], float("nan"))
    trial = LocalStore(tmp_path)
    checkpoints.save(
        trial, epoch=checkpoint.epoch, state={**checkpoint.state, "model": model}, meta=checkpoint.meta, keep=1
    )
    for metric in ("retrieval", "corrupted", "knn", "probe", "repr"):
        with pytest.raises(CheckpointError, match=f"{checkpoint.name}: its embeddings of .* images are not finite"):
            evaluate(trial, settings=Evaluation(metrics=[metric]))
    assert not (tmp_path / "evaluation.json").exists()


def test_evaluate_measures_again_for_changed_weights(tmp_path):
    """The content of a checkpoint counts, not its name."""
    runs.run(World(), tmp_path, runs.experiment())
    store = LocalStore(tmp_path)
    first = evaluate(store)
    checkpoint = checkpoints.latest(store)
    torch.manual_seed(0)
    changed = {
        key: torch.randn_like(value) if value.ndim > 1 else value for key, value in checkpoint.state["model"].items()
    }
    checkpoints.save(
        store, epoch=checkpoint.epoch, state={**checkpoint.state, "model": changed}, meta=checkpoint.meta, keep=1
    )
    assert evaluate(store) != first


def test_evaluate_with_force_measures_again(store):
    first = evaluate(store)
    path = store.folder / "evaluation.json"
    before = path.stat().st_mtime_ns
    assert evaluate(store, force=True) == first
    assert path.stat().st_mtime_ns != before


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_evaluate_refuses_an_unusable_device(store, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        evaluate(store, device=device, force=True)


def test_evaluate_replaces_a_damaged_evaluation(store):
    expected = evaluate(store)
    (store.folder / "evaluation.json").write_text("{")
    assert evaluate(store) == expected


def test_evaluate_refuses_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        evaluate(LocalStore(tmp_path))
