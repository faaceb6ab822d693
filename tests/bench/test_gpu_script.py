"""``benchmarks/gpu.py``: all stages at toy size on the CPU, and its records of failures and of time that is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    return gpu


@pytest.mark.slow
def test_gpu_script_runs_all_stages_at_toy_size_without_ray(tmp_path):
    absent, out = tmp_path / "absent", tmp_path / "out"
    absent.mkdir()
    for name in ("ray", "shtab", "wandb", "optuna"):  # packages that a machine with a GPU need not have
        (absent / f"{name}.py").write_text("raise ModuleNotFoundError(__name__, name=__name__)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(absent), str(ROOT)])}
    command = [sys.executable, str(SCRIPT), "--toy", "--out", str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    records = {path.stem: json.loads(path.read_text()) for path in out.iterdir()}
    assert set(records) == {"environment", "tests", "plans", "views", "accumulation", "graphs", "ladder"}
    assert records["environment"]["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert "test_augment_on_the_gpu_equals_the_cpu" in records["tests"]["gpu"]["output"]
    assert all(0.99 < plan["loss_ratio"] < 1.01 and len(plan["seconds"]) == 5 for plan in records["plans"].values())
    assert len(records["plans"]) == 5
    (rows,) = records["accumulation"].values()
    assert [row["chunks"] for row in rows] == [None, 2, 4, 8]
    assert all(row["error"] < 1e-9 for row in rows[1:])
    assert rows[1]["bytes"] < rows[0]["bytes"]
    (rows,) = records["views"].values()
    assert all(row["views"] > 0 for row in rows)
    assert all(graph["samples_a_second"] > 0 for graph in records["graphs"].values())
    arms = {name.rpartition("pixels, ")[2]: len(record["arms"]) for name, record in records["ladder"].items()}
    assert arms == {"bf16": 6, "float32": 2, "bf16, compiled": 1}


def test_a_failed_case_is_recorded_and_the_next_one_runs(gpu, tmp_path, capsys):
    def fail():
        raise RuntimeError("CUDA error:\n an illegal memory access")

    session = gpu.Session(tmp_path / "new", toy=True, device="cpu", seconds=60)
    session.case("plans", "first", fail)
    session.case("plans", "second", lambda: {"seconds": 1.5})
    assert session.failed
    record = json.loads((tmp_path / "new" / "plans.json").read_text())
    assert record == {
        "first, failed": "RuntimeError: CUDA error: an illegal memory access",
        "second": {"seconds": 1.5},
    }
    assert "plans: first: FAILED RuntimeError" in capsys.readouterr().out


def test_no_case_starts_after_the_seconds_and_what_was_measured_stays(gpu, tmp_path, capsys):
    session = gpu.Session(tmp_path, toy=True, device="cpu", seconds=60)

    def ladder():
        session.put("ladder", "case, so far", [1])
        session._end -= 60
        session.check_time()

    session.case("ladder", "case", ladder)
    session.case("ladder", "later", lambda: pytest.fail("it must not start"))
    record = json.loads((tmp_path / "ladder.json").read_text())
    over = "the seconds of --seconds are over"
    assert record == {"case, so far": [1], "case, left out": over, "later, left out": over}
    assert not session.failed


def test_gpu_script_exits_with_1_if_a_case_failed(gpu, tmp_path, monkeypatch):
    import gpu_stages

    broken = {"plans": lambda session: session.case("plans", "case", lambda: [][0])}
    monkeypatch.setattr(gpu_stages, "STAGES", broken)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert gpu.main(["--toy", "--out", str(tmp_path), "--stages", "plans"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_script_without_a_gpu_is_refused_in_one_line(gpu, tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: torch finds no GPU here; --toy runs all stages at toy size on the CPU\n"


def test_gpu_script_names_missing_packages_in_one_line(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    assert gpu.main(["--toy", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: these packages are missing: no_such_package\n"
