"""The peak memory of a trial on 50,000 colour images, and over many epochs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.official import write_cifar

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak"),
]

GIB = 2**30
SMALL: dict[str, Any] = {"encoder": {"name": "resnet_small", "widths": [8, 16], "stem_stride": 2}, "track": []}


def peaks(experiment: dict[str, Any], folder: Path, evaluation: dict[str, Any] | None = None) -> dict[str, int]:
    """Run a trial in a process of its own; return its peak bytes by stage."""
    script, blocks = str(Path(__file__).with_name("memory_trial.py")), (SMALL | experiment, evaluation or {})
    command = [sys.executable, script, *map(json.dumps, blocks), str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Files of CIFAR-10's format and size, with random pixels."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, "cifar10", num_train=10_000, num_test=10_000)
    return root


@pytest.mark.parametrize(
    "sampler, source, epochs", [("spectral", "fresh", 1), ("refined", "fresh", 1), ("refined", "cached", 2)]
)
def test_a_trial_on_50000_colour_images_stays_within_4_gib(cifar, tmp_path, sampler, source, epochs):
    experiment = {
        "data": {"name": "cifar10", "dir": str(cifar)},
        "sampler": {"name": sampler},
        "embeddings": {"source": source},
        "train": {"epochs": epochs, "batch_size": 128},
    }
    evaluation = {
        "metrics": ["retrieval", "corrupted", "knn", "repr", "probe"],
        "corrupted": {"severities": [3], "corruptions": ["gaussian_noise", "defocus_blur"]},
        "probe": {"penalties": [0.01]},
    }
    found = peaks(experiment, tmp_path, evaluation)
    assert {f"epoch {epochs}", *evaluation["metrics"]} <= set(found)
    assert max(found.values()) <= 4 * GIB, found


def test_memory_is_flat_over_50_epochs(tmp_path):
    experiment = {
        "data": {"name": "digits"},
        "sampler": {"name": "spectral", "k": 4},
        "projector": {"hidden": 32, "dim": 128},
        "train": {"epochs": 50, "batch_size": 128},
    }
    found = peaks(experiment, tmp_path)
    # Forty epochs that each left their embeddings behind, two of (1294, 128) float32, would take 53 MB. Half of
    # that is allowed, for pages that the allocator holds in reserve.
    assert found["epoch 50"] - found["epoch 10"] <= 40 * 2 * 1294 * 128 * 4 / 2, found
