"""Evaluation of a checkpoint, by hand and again."""

from __future__ import annotations

import json

import pytest
import torch
from engine import runs

from mbcl.config.experiment import Evaluation
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.setup import load_data, model_of
from mbcl.errors import CheckpointError, ConfigError
from mbcl.evaluation import evaluate
from mbcl.io.store import LocalStore
from mbcl.metrics import retrieval
from mbcl.seeding import derive

CONTENT = runs.experiment(train={"epochs": 2, "batch_size": 16, "precision": "float64"})
"""In float64 no two scores are so near each other that rounding exchanges their ranks."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    runs.run(World(), folder, CONTENT)
    return LocalStore(folder)


def test_metrics_are_those_of_the_checkpoint_on_the_test_split(store):
    model = model_of(CONTENT, in_channels=1)
    model.load_state_dict(checkpoints.latest(store).state["model"])
    test = load_data(CONTENT.data, seed=0).test
    positions = torch.arange(len(test))
    with torch.no_grad():
        views = two_views(test, positions, ViewKey(derive(0, "test evaluation views")))
        u, v = model.eval()(views.double()).chunk(2)
    expected = {f"retrieval/{key}": value for key, value in retrieval(u, v).items()}
    assert evaluate(store) == pytest.approx(expected, rel=runs.EXACT)
    assert len(test) == 359


def test_a_second_evaluation_returns_the_first(store):
    first = evaluate(store)
    before = (store.folder / "evaluation.json").stat().st_mtime_ns
    assert evaluate(store) == first
    assert (store.folder / "evaluation.json").stat().st_mtime_ns == before


def test_other_settings_are_evaluated_anew(store):
    cosine = evaluate(store)
    dot = evaluate(store, settings=Evaluation(similarity="dot"))
    assert dot != cosine
    assert json.loads((store.folder / "evaluation.json").read_text())["asked"]["settings"]["similarity"] == "dot"
    small = evaluate(store, settings=Evaluation(batch_size=7))
    assert small == pytest.approx(cosine, rel=runs.EXACT)


def test_only_what_is_new_is_measured(store, tmp_path):
    out, told = LocalStore(tmp_path), []

    def measured(force=False, earlier=None, **block):
        told.clear()
        into = LocalStore(tmp_path / "elsewhere") if earlier else out
        settings = Evaluation.model_validate(block)
        found = evaluate(store, settings=settings, out=into, earlier=earlier, force=force, log=told.append)
        return found, [line.partition(": ")[2].rpartition(": ")[0] for line in told]

    corrupted = {"corruptions": ["fog", "contrast"]}
    first, names = measured(metrics=["knn", "corrupted"], corrupted={**corrupted, "severities": [2, 1]})
    assert names == ["knn", "corrupted, severity 2", "corrupted, severity 1"]
    more = {"metrics": ["repr", "corrupted", "knn"], "corrupted": {**corrupted, "severities": [1, 3]}}
    found, names = measured(**more)
    assert names == ["repr", "corrupted, severity 3"]
    assert found["knn/top1"] == first["knn/top1"]
    assert not [key for key in found if "/2/" in key]
    assert measured(**more) == (found, [])
    back, names = measured(metrics=["knn", "corrupted"], corrupted={**corrupted, "severities": [2, 1]})
    assert (back, names) == (first, []), "what is not asked for meanwhile is kept"
    assert list(back) == list(first)
    assert measured(metrics=["knn"], knn={"k": 3})[1] == ["knn"]
    assert measured(metrics=["knn"], split="validation")[1] == ["knn"]
    there, names = measured(earlier=out, **more)
    assert (there, names) == (found, [])
    assert json.loads((tmp_path / "elsewhere" / "evaluation.json").read_text())["metrics"] == found
    assert measured(force=True, **more) == (found, ["repr", "corrupted, severity 1", "corrupted, severity 3", "knn"])
    path = tmp_path / "evaluation.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'))
    assert measured(**more)[1] == ["repr", "corrupted, severity 1", "corrupted, severity 3", "knn"]


def test_what_was_measured_before_an_interrupt_is_kept(store, tmp_path):
    out, told = LocalStore(tmp_path), []

    def interrupt(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            raise KeyboardInterrupt

    settings = Evaluation(metrics=["knn", "repr", "probe"])
    with pytest.raises(KeyboardInterrupt):
        evaluate(store, settings=settings, out=out, log=interrupt)
    assert out.list() == ["evaluation.part.json"], "half an evaluation is none"
    told.clear()
    found = evaluate(store, settings=settings, out=out, log=told.append)
    assert [line.partition(": ")[2].partition(":")[0] for line in told] == ["probe"]
    assert found == evaluate(store, settings=settings, out=LocalStore(tmp_path / "whole"))
    assert out.list() == ["evaluation.json", "whole"]


def test_views_are_embedded_once(store, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("mbcl.evaluation.subject.two_views", lambda *a: looked.append(a) or two_views(*a))
    evaluate(store, settings=Evaluation(metrics=["retrieval", "repr"]), out=LocalStore(tmp_path))
    assert len(looked) == 1, "the 359 images are one batch"


def test_weights_that_give_no_numbers_are_refused(store, tmp_path):
    found = checkpoints.latest(store)
    model = dict(found.state["model"])
    model["encoder.bn1.weight"] = torch.full_like(model["encoder.bn1.weight"], float("nan"))
    trial = LocalStore(tmp_path)
    checkpoints.save(trial, epoch=found.epoch, state={**found.state, "model": model}, meta=found.meta, keep=1)
    for metric in ("retrieval", "corrupted", "knn", "probe", "repr"):
        with pytest.raises(CheckpointError, match=f"{found.name}: its embeddings of .* images are not finite"):
            evaluate(trial, settings=Evaluation(metrics=[metric]))
    assert not (tmp_path / "evaluation.json").exists()


def test_another_model_under_the_same_name_is_evaluated_anew(tmp_path):
    """What counts is the checkpoint's content, not its name."""
    runs.run(World(), tmp_path, runs.experiment())
    store = LocalStore(tmp_path)
    first = evaluate(store)
    found = checkpoints.latest(store)
    torch.manual_seed(0)
    changed = {key: torch.randn_like(value) if value.ndim > 1 else value for key, value in found.state["model"].items()}
    checkpoints.save(store, epoch=found.epoch, state={**found.state, "model": changed}, meta=found.meta, keep=1)
    assert evaluate(store) != first


def test_force_evaluates_again(store):
    first = evaluate(store)
    path = store.folder / "evaluation.json"
    before = path.stat().st_mtime_ns
    assert evaluate(store, force=True) == first
    assert path.stat().st_mtime_ns != before


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_a_device_that_is_not_there(store, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        evaluate(store, device=device, force=True)


def test_a_damaged_evaluation_is_made_again(store):
    expected = evaluate(store)
    (store.folder / "evaluation.json").write_text("{")
    assert evaluate(store) == expected


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        evaluate(LocalStore(tmp_path))
