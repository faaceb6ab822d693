"""The main job on three nodes with declared GPUs, all on this machine; one of them is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from data.official import write_image
from patience import wait_for

from mbcl.cli import main
from mbcl.config.experiment import Experiment

from .helpers import (
    ENVIRONMENT,
    ROOT,
    WORKER,
    assert_same_metrics,
    close_gate,
    gated_command,
    line_of,
    train_without_ray,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
pytest.importorskip("ray")

EPOCHS = 30
DETECTION = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "0",
}


def rows(results: Path) -> list[dict[str, Any]]:
    """The metrics rows of the one trial."""
    files = list(results.glob("study/trials/*/metrics.jsonl"))
    return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []


def run_and_lose_a_node(folder: Path) -> None:
    """Run the study while a node is lost and another joins; in the main thread of a new process."""
    from ray.cluster_utils import Cluster

    def node(name: str) -> dict[str, Any]:
        return {"env_vars": {"MBCL_CACHE": str(folder / name)}}

    def worker(name: str) -> Any:
        return nodes.add_node(num_cpus=2, num_gpus=1, resources={"task": 2}, **node(name))

    head = {"num_cpus": 0, "resources": {"driver": 1000}, "include_dashboard": False, **node("head")}
    nodes = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        worker("first")
        lost = worker("second")
        gate = folder / "gates" / "three"
        close_gate(gate, WORKER, "trials/*/metrics.jsonl", 3)
        line = gated_command(folder / "study.yaml", folder / "results", gate.parent, "--address", nodes.address)
        with subprocess.Popen(line, cwd=ROOT, env=os.environ | {"MBCL_REHEARSAL": "1"}) as sweep:
            wait_for(lambda: len(rows(folder / "results")) >= 3 or sweep.poll() is not None)
            nodes.remove_node(lost, allow_graceful=False)
            gate.unlink()
            print("lost in epoch", len(rows(folder / "results")))
            worker("third")
            sys.exit(sweep.wait())
    finally:
        nodes.shutdown()


def test_trial_on_two_nodes_survives_the_loss_of_one(space_file, tmp_path, monkeypatch):
    for number in range(60):
        for part in ("train", "test"):
            write_image(tmp_path / f"images/{part}/{'ab'[number % 2]}/{number}.png", number, size=16)
    images = ["--data", "image_folder", "--data-dir", str(tmp_path / "images")]
    assert main(["data", "pack", *images, "--out", str(tmp_path / "pack")]) == 0
    data = {"name": "image_folder", "dir": f"file://{tmp_path}/pack"}
    changes = {
        "experiment/data": data,
        "experiment/train/epochs": EPOCHS,
        "experiment/sampler": {"name": "spectral", "k": 2},
        "experiment/planner": {"every": 10},
        "space": {"sampler": {"grid": [{"name": "spectral", "k": 2}]}},
        "baseline": None,
        "resources": {"workers": 2, "gpu": True},
    }
    file = space_file(changes)
    line = line_of("test_three_nodes", f"run_and_lose_a_node(Path({str(tmp_path)!r}))")
    result = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT | DETECTION, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "lost in epoch" in result.stdout

    study = json.loads((tmp_path / "results/study/study.json").read_text())
    (trial,) = study["trials"].values()
    assert (trial["status"], trial["attempts"]) == ("finished", 1), "its driver is on the head, which was not lost"
    metrics_rows = rows(tmp_path / "results")
    assert [row["epoch"] for row in metrics_rows] == list(range(1, EPOCHS + 1)), "no epoch is lost or doubled"

    copies = {name: len(list((tmp_path / name).rglob("*.npy"))) for name in ("head", "first", "second", "third")}
    assert copies == {"head": 0, "first": 1, "second": 1, "third": 1}, "who reads data has a copy; the head reads none"

    monkeypatch.setenv("MBCL_CACHE", str(tmp_path / "alone"))

    experiment = Experiment.model_validate(yaml.safe_load(file.read_text())["experiment"])
    assert_same_metrics(trial["metrics"], train_without_ray(experiment, tmp_path / "one"))
