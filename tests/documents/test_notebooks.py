"""The notebooks of examples/ run from the first cell to the last, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report.studies import EIGHT, grid, write_histories

from mbcl.io.store import LocalStore
from mbcl.study.record import write_study

from .blocks import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(path: Path) -> list[tuple[int, str]]:
    """The code cells of a notebook with their numbers."""
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4
    return [(n, "".join(cell["source"])) for n, cell in enumerate(content["cells"]) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    content = json.loads(path.read_text())
    ran = [n for n, cell in enumerate(content["cells"]) if cell.get("outputs") or cell.get("execution_count")]
    assert ran == [], "clear all outputs before storing"


def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run the cells in one namespace."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    space: dict[str, object] = {"__name__": "notebook"}
    for number, source in cells(path):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), space)
    space["figures"] = len(plt.get_fignums())
    plt.close("all")
    return space


def test_own_embeddings_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = run(ROOT / "examples/own_embeddings.ipynb", monkeypatch)
    lift, same = made["lift"], made["same"]
    assert made["figures"] == 2
    lifts = [lift[f"kmeans, pool {pool}"] for pool in (64, 128, 256, 512)]
    assert lifts == sorted(lifts), "the larger the pools, the harder"
    assert same["kmeans, pool 512"] > same["the same, margin 0.05, 512"] > same["shuffle"]


def test_study_runs(monkeypatch, tmp_path):
    """On a stored study of eight seeds, in which ``spectral`` is the best."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    store, study = LocalStore(tmp_path / "results/samplers"), grid(EIGHT)
    write_study(store, study)
    write_histories(store, study)
    made = run(ROOT / "examples/study.ipynb", monkeypatch)
    assert made["figures"] == 3
    differences = made["differences"]
    assert len(differences) == 8
    assert sorted(differences) == ["osgd (k=20, q=5)", "spectral (k=4)"]
    assert differences["spectral (k=4)"].min() > 0.04
