"""The notebooks of examples/ run from the first cell to the last, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def run(path: Path, monkeypatch: pytest.MonkeyPatch, **names: object) -> dict[str, object]:
    """Run the cells in one namespace; ``names`` replace what the first cell sets."""
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
