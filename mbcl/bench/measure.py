"""Measurements of a plan: its time, its losses and its coverage.

Letters: N samples, S batches of a plan, B samples a batch.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbcl.bench.embeddings import DataSet
from mbcl.config.sampler_spec import Spec
from mbcl.errors import ConfigError, SamplerWarning
from mbcl.functional import clip, nt_xent
from mbcl.plan import BatchPlan
from mbcl.samplers import Sampler
from mbcl.seeding import numpy_generator

CHUNK_ELEMENTS = 2**22
RANDOM_PARTITIONS = 8
"""Random partitions of a pool; their mean loss is the reference for random batches."""
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "numba")


def clock_of(device: str) -> Callable[[], float]:
    """Return a clock in seconds: this process's CPU time, or for a GPU wall time after a synchronisation."""
    return time.process_time if device == "cpu" else _gpu_clock


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def check_device(device: str) -> None:
    """Check that torch has the device of ``--device``.

    Raises:
        ConfigError: if there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; allowed is cpu")


def memory_bytes(field: str, device: str, process: int | str = "self") -> int:
    """Return the bytes of a process now (``VmRSS``) or at its peak (``VmHWM``); on a GPU, of this one's allocations.

    ``ru_maxrss`` is unsuitable: a child process starts with its parent's value.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated()
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def environment(device: str) -> dict[str, str]:
    """Return the names of the processor and of the GPU, if one is used, and the versions of Python and libraries."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux only; elsewhere Python's platform module names the processor
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    info = {"processor": processor, "python": platform.python_version()}
    if device == "cuda":
        info["gpu"] = torch.cuda.get_device_name()
    return info | {library: version(library) for library in LIBRARIES}


@dataclass(frozen=True)
class Worth:
    """Means over the batches of a plan: NT-Xent and CLIP loss in nats, and two shares.

    ``same_class`` is the share of the pairs of different samples in a batch that have one class, ``coverage`` that of
    the samples that the plan visits.
    """

    ntxent: float
    clip: float
    same_class: float
    coverage: float


def worth(batches_SB: Tensor, data: DataSet, temperature: float) -> Worth:
    """Compute the means over all batches, in chunks, so that memory does not grow with S."""
    batch_size = batches_SB.shape[1]
    totals = torch.zeros(3, dtype=torch.float64)
    for part_sB in batches_SB.split(max(1, CHUNK_ELEMENTS // (2 * batch_size) ** 2)):
        rows_sB = part_sB.to(data.labels.device)
        z1, z2 = data.embeddings.z1[rows_sB], data.embeddings.z2[rows_sB]
        labels_sB = data.labels[rows_sB]
        same_s = (labels_sB[:, :, None] == labels_sB[:, None, :]).double().sum(dim=(1, 2)) - batch_size
        losses = (loss(z1, z2, temperature=temperature).double().sum() for loss in (nt_xent, clip))
        totals += torch.stack([*losses, same_s.sum() / (batch_size * (batch_size - 1))]).cpu()
    ntxent, clipped, same_class = (totals / len(batches_SB)).tolist()
    return Worth(ntxent, clipped, same_class, len(torch.unique(batches_SB)) / len(data))


def random_batches(num_samples: int, batch_size: int, partitions: int, seed: int) -> Tensor:
    """(S * partitions, B) int64: random partitions, each without its last N mod B samples, which fill no batch."""
    generator = numpy_generator(seed, "bench/random")
    used = num_samples // batch_size * batch_size
    orders = [generator.permutation(num_samples)[:used] for _ in range(partitions)]
    return torch.from_numpy(np.concatenate(orders).reshape(-1, batch_size))


def timed_plan(
    sampler: Sampler, data: DataSet, *, seed: int, epoch: int = 0, spec: Spec | None = None
) -> tuple[BatchPlan, float]:
    """Plan the whole data set, with the groups of a specification if it has any.

    Returns:
        The plan, and the seconds that it took on the clock of its device.
    """
    ids: dict[str, Any] = {} if spec is None else spec.ids(data.labels.cpu().numpy())
    clock = clock_of(data.labels.device.type)
    with warnings.catch_warnings():
        # The settings were checked before, with the same warnings.
        warnings.simplefilter("ignore", SamplerWarning)
        start = clock()
        plan = sampler.plan(len(data), data.embeddings, seed=seed, epoch=epoch, **ids)
        return plan, clock() - start
