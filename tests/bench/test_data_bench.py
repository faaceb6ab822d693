"""``mbcl bench data``: its output and its checks."""

from __future__ import annotations

import json

import pytest
import torch

from mbcl.bench.data import UsualViews, images_of, whole_batches
from mbcl.cli import main


def test_bench_data_prints_and_writes_views_a_second(tmp_path, capsys):
    line = "bench data --sizes 12 --num 24 --batch-size 8 --workers 0 --repeats 2 --out".split()
    assert main([*line, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "views a second" in out
    content = json.loads((tmp_path / "data.json").read_text())
    assert [row["pipeline"] for row in content["rows"]] == ["whole batches, cpu", "one image at a time, 0 workers"]
    assert all(row["views"] >= row["least"] > 0 for row in content["rows"])
    assert {"torch", "processor"} <= set(content["environment"])


def test_pipelines_make_two_views_of_every_image():
    images = images_of(10, 12)
    assert whole_batches(images, 4, "cpu") == 20
    views = [view for pair in UsualViews(images) for view in pair]
    assert len(views) == 20
    assert all(view.shape == (3, 12, 12) and view.dtype == torch.float32 for view in views)


@pytest.mark.parametrize("option", ["--sizes 4", "--num 2", "--workers -1", "--repeats 0", "--batch-size 1"])
def test_bench_data_refuses_bad_options(option, capsys):
    assert main(["bench", "data", *option.split()]) == 2
    assert option.split()[0] in capsys.readouterr().err
