"""Growth of the time and memory of a whole-data plan with the number of samples, on the mixture of noise 1.

Letters: N samples, S batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from mbcl.bench.embeddings import DIMENSIONS, mixture
from mbcl.bench.measure import memory_bytes, random_batches, timed_plan, worth
from mbcl.config.sampler_spec import Spec
from mbcl.samplers._threads import one_thread
from mbcl.seeding import numpy_generator

NOISE = 1.0
BATCHES_EXAMINED = 4000
FLOAT_BYTES = 4


def grow(specs: Sequence[Spec], sizes: Sequence[int], **protocol: Any) -> Iterator[dict[str, Any]]:
    """Yield a row for every sampler and size as soon as it is measured; the last row of a sampler has the exponent.

    The smallest size is also that of the warm-up plan; ``protocol`` has the other arguments of :func:`measure`.
    """
    for spec in specs:
        seconds: dict[int, float] = {}
        for num_samples in sorted(sizes):
            # A new process each: a process's peak of memory (VmHWM) never falls.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                row = pool.submit(measure, spec, num_samples, min(sizes), **protocol).result()
            seconds[num_samples] = row["seconds"]
            if num_samples == max(sizes):
                row["exponent"] = exponent(seconds)
            yield row


def exponent(seconds: dict[int, float]) -> float | None:
    """Return the exponent a of time ~ N^a between the smallest and the largest N; None if there is only one N."""
    first, last = min(seconds), max(seconds)
    if first == last:
        return None
    return math.log(seconds[last] / seconds[first]) / math.log(last / first)


def measure(
    spec: Spec, num_samples: int, warm_up: int, *, batch_size: int, pool: int, temperature: float, device: str
) -> dict[str, Any]:
    """Make the data and one plan in this process, and return the row of its time, memory and loss.

    A first plan of one pool loads compiled code before memory is measured. A second one, of ``warm_up`` samples, is not
    counted either.

    ``extra_bytes`` is the peak of memory less what the process occupied after compiled code was loaded, less the
    inputs. It is an upper bound: it includes the memory for making the data, 12 MB, and what the warm-up leaves.
    """
    with one_thread():
        first = spec.in_pool(batch_size, pool)
        _, cold_seconds = timed_plan(first, mixture(NOISE, pool, 1).to(device), seed=0)
        before = memory_bytes("VmRSS", device)
        sampler = spec.whole(batch_size)
        data = mixture(NOISE, num_samples, 0).to(device)
        timed_plan(sampler, data.first(warm_up), seed=0, spec=spec)
        plan, seconds = timed_plan(sampler, data, seed=0, spec=spec)
        inputs = 2 * num_samples * DIMENSIONS * FLOAT_BYTES
        extra = memory_bytes("VmHWM", device) - before - inputs
        examined = min(BATCHES_EXAMINED, len(plan))
        sampled = numpy_generator(0, "bench/examined").permutation(len(plan))[:examined]
        planned = worth(plan.batches[torch.from_numpy(sampled)], data, temperature)
        chance = worth(random_batches(len(data), batch_size, 1, 0)[:examined], data, temperature)
    return {
        "method": spec.text,
        "num_samples": num_samples,
        "seconds": seconds,
        "warm_up_seconds": cold_seconds,
        "microseconds_a_sample": seconds / num_samples * 1e6,
        "extra_bytes": extra,
        "extra_of_inputs": extra / inputs,
        "batches_examined": examined,
        "ntxent_lift": planned.ntxent / chance.ntxent,
        "clip_lift": planned.clip / chance.clip,
        "coverage": plan.coverage(num_samples),
    }
