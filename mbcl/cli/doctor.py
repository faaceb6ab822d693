"""``mbcl doctor``: the gradient parity certificate on this machine, as a table and a verdict."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product

import torch
from rich.console import Console

from mbcl import __version__
from mbcl.distributed.collectives import World
from mbcl.engine.gradient_parity import BATCH_SIZE, CHUNK_SIZE, Case, Errors, certify
from mbcl.errors import ConfigError, pluralize
from mbcl.io.store import check_writable, open_store, write_text
from mbcl.testing import run_on_gloo

FILE = "doctor.json"
TIMEOUT_SECONDS = 7 * 24 * 3600.0
"""A week, for any number of steps: a rank that fails or dies ends the comparison at once."""
_LINE = "{:<10} {:>7}  {:<8} {:<12} {:>8} {:>9} {:>8} {:>6}  {}"
_COLUMNS = ("objective", "workers", "dtype", "accumulation", "loss", "gradients", "state", "bound", "")


def examine(
    *,
    workers: Sequence[int],
    objectives: Sequence[str],
    dtypes: Sequence[str],
    accumulation: Sequence[str],
    steps: int,
    out: str | None,
) -> bool:
    """Certify every combination, print the errors, and return whether all are within their bounds.

    ``workers`` are numbers of gloo processes; ``out`` is the folder for ``doctor.json``, None for no file.

    Raises:
        ConfigError: if a number of workers cannot share a batch or a chunk.
    """
    store = None if out is None else open_store(out)
    if store is not None:
        check_writable(store, "--out")
    shared = CHUNK_SIZE if "cached" in accumulation else BATCH_SIZE
    for size in workers:
        if size < 1 or shared % size:
            raise ConfigError(f"--workers: found {size}, allowed are divisors of {shared}")
    cases = [Case(*values, steps=steps) for values in product(objectives, dtypes, accumulation)]
    console = Console(highlight=False)
    console.print(f"mbcl {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    console.print(
        f"{pluralize(steps, 'step')} on batches of {BATCH_SIZE} (cached accumulation: chunks of {CHUNK_SIZE}) against "
        "one process\nwith whole batches: largest errors, relative to each tensor's largest entry"
    )
    console.print(_LINE.format(*_COLUMNS).rstrip())
    results = []
    for size in workers:
        with console.status(f"{pluralize(size, 'gloo process')}, {pluralize(len(cases), 'case')}"):
            errors_by_case = run_on_gloo(_certify_all, size, cases, timeout=TIMEOUT_SECONDS)[0]
        for case, errors in zip(cases, errors_by_case, strict=True):
            console.print(_line(size, case, errors))
            results.append({"workers": size, **asdict(case), **asdict(errors), "within": errors.within})
    beyond = sum(not result["within"] for result in results)
    comparisons = pluralize(len(results), "comparison")
    console.print(f"{comparisons}, {beyond} beyond their bounds" if beyond else "all within their bounds")
    if store is not None:
        write_text(store, FILE, json.dumps({"torch": torch.__version__, "results": results}, indent=1))
    return beyond == 0


def _line(workers: int, case: Case, errors: Errors) -> str:
    measured = [f"{value:.1e}" for value in (errors.loss, errors.gradients, errors.state)]
    verdict = "ok" if errors.within else "BEYOND"
    return _LINE.format(
        case.objective, workers, case.dtype, case.accumulation, *measured, f"{errors.bound:.0e}", verdict
    )


def _certify_all(world: World, cases: Sequence[Case]) -> list[Errors]:
    return [certify(world, case) for case in cases]
