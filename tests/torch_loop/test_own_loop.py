"""The example and the document of a loop of one's own run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent.parent


def test_the_example_trains_on_random_and_on_planned_batches(capsys):
    example = runpy.run_path(str(ROOT / "examples/own_loop.py"))
    assert len((ROOT / "examples/own_loop.py").read_text().splitlines()) <= 80
    example["main"](epochs=3)
    shown = capsys.readouterr().out
    assert len(re.findall(r"^shuffle, epoch \d: loss [\d.]+$", shown, flags=re.MULTILINE)) == 3
    lifts = re.findall(r"^refined, epoch \d: loss [\d.]+, its plan ([\d.]+) times", shown, flags=re.MULTILINE)
    assert len(lifts) == 3
    assert min(map(float, lifts)) > 1, "planned batches are harder than random ones"
    scores = dict(re.findall(r"^(\w+): retrieval top-1 ([\d.]+)$", shown, flags=re.MULTILINE))
    assert min(map(float, scores.values())) > 10 / 297, "far above one of the 297 test images by chance"
    assert sorted(scores) == ["refined", "shuffle"]


def test_the_example_learns_and_repeats_itself():
    images = torch.from_numpy(load_digits().data).float()[:256] / 16
    train = runpy.run_path(str(ROOT / "examples/own_loop.py"))["train"]
    _, losses = train("refined", images, 4, pool=128)
    assert losses[-1] < losses[0]
    assert train("refined", images, 4, pool=128)[1] == losses


def test_the_document_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_loop.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks[:3]):  # those of other trainers: tests/integrations
        if number == 2:  # resume from the middle of an epoch
            names["batches"].set_epoch(1)
            next(iter(names["batches"]))
        exec(compile(block, "docs/own_loop.md", "exec"), names)
    assert {key: names["state"][key] for key in ("epoch", "step")} == {"epoch": 2, "step": 8}
    assert names["replanner"].newest.lift > 0
