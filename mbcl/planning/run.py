"""The command ``mbcl plan``: read embeddings, make a plan, measure and save it."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.config.base import PathConfigError, apply_overrides, validate_parameters
from mbcl.config.yaml_reader import parse_yaml
from mbcl.console.stages import Stages
from mbcl.errors import ConfigError, MbclError, PlanError
from mbcl.functional import check_count, check_temperature
from mbcl.io.columns import read_column, split_source
from mbcl.io.files import atomic_write
from mbcl.io.store import Store, open_store
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner.plan_service import failure
from mbcl.planning.console import table
from mbcl.planning.embeddings_file import read_table
from mbcl.planning.quality import measure
from mbcl.samplers import SAMPLERS, Sampler, build, check_one_width, check_plan, with_groups

DEFAULT_TEMPERATURE = 0.1
MAX_SAMPLES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Parsed options of ``mbcl plan``; see ``mbcl plan --help``."""

    embeddings: list[str] | None
    num_samples: int | None
    sampler: str
    overrides: list[str]
    batch_size: int
    seed: int
    epoch: int
    round: int
    temperature: float | None
    apart: str | None
    together: str | None
    compare: str | None
    check: bool
    json: bool
    overwrite: bool
    order: str | None
    out: str


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples to plan: their number N, and what files hold: (N, D) embeddings, (N,) classes, and (N,) ids."""

    num_samples: int
    embeddings: Embeddings | None = None
    labels: torch.Tensor | None = None
    apart: NDArray[Any] | None = None
    together: NDArray[Any] | None = None


def run(request: PlanRequest) -> int:
    """Make, validate, measure, save and print a plan; return the exit code.

    Options are validated before any long computation, as far as that is possible without reading the embeddings.

    Raises:
        ConfigError: if the request is invalid or a file cannot be read or written.
        PlanError: if the plan is invalid, or if ``check`` is set and planning again gives a different plan. Nothing is
            written in this case.
    """
    for name in ("seed", "epoch", "round"):
        value = check_count(f"--{name}", getattr(request, name), least=0)
        if value >= 2**63:
            raise ConfigError(f"--{name} must be below 2^63, found {value}")
    sampler = sampler_of(request)
    temperature = getattr(sampler, "temperature", DEFAULT_TEMPERATURE)
    if request.temperature is not None:
        temperature = check_temperature(request.temperature)
    store, name = _resolve_out(request)
    _check_order(request)
    other = _load_other_plan(request)
    with Stages() as stages:
        samples = _load_samples(request, sampler, stages)
        _check_fits(other, samples.num_samples)
        sampler = with_groups(sampler, apart=samples.apart, together=samples.together)
        start = time.perf_counter()
        plan = _make_plan(sampler, samples, request, stages, "planning")
        seconds = time.perf_counter() - start
        if request.check:
            second_plan = _make_plan(sampler, samples, request, stages, "planning again")
            if second_plan.digest != plan.digest:
                raise PlanError(
                    f"planned twice, the digests are {plan.digest} and {second_plan.digest}; nothing is written"
                )
        metrics = {
            "sampler": sampler.name,
            "parameters": repr(sampler),
            "seconds": seconds,
            "same_when_planned_again": True if request.check else None,
            **measure(
                plan,
                num_samples=samples.num_samples,
                embeddings=samples.embeddings,
                labels=samples.labels,
                other=other,
                temperature=temperature,
                seed=request.seed,
                stage=stages.begin,
            ),
        }
        try:
            store.write_bytes(name, plan.to_bytes())
        except OSError as error:
            raise ConfigError(f"--out: {store.uri}/{name}: cannot be written: {error.strerror or error}") from error
        _write_order(request, plan)
    metrics["plan"] = f"{store.uri}/{name}"
    if request.json:
        finite = {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in metrics.items()}
        sys.stdout.write(json.dumps(finite, indent=1) + "\n")
    else:
        table(metrics)
    return 0


def sampler_of(request: PlanRequest) -> Sampler:
    """Build the requested sampler with its parameters.

    Raises:
        ConfigError: if the name is unknown, or if a parameter is unknown or out of range.
    """
    block = parse_yaml(request.sampler, "--sampler")
    block = {"name": block} if isinstance(block, str) else block
    if isinstance(block, dict):
        apply_overrides(block, request.overrides)
    if not isinstance(block, dict) or not isinstance(block.get("name"), str):
        given = block.get("name", request.sampler) if isinstance(block, dict) else request.sampler
        raise ConfigError(f"--sampler: expected a name or a block such as {{name: ...}}, found {given!r}")
    name = SAMPLERS.canonical(block.pop("name"))
    try:
        parameters = validate_parameters(SAMPLERS[name], block, frozenset({"batch_size"}))
    except PathConfigError as error:
        raise ConfigError(f"sampler {name!r}: {error.path}: {error}") from error
    try:
        return build(name, batch_size=request.batch_size, **parameters)
    except ConfigError as error:
        raise error if str(error).startswith("sampler ") else ConfigError(f"sampler {name!r}: {error}") from error


def _resolve_out(request: PlanRequest) -> tuple[Store, str]:
    """Parse ``--out`` into store and file name; refuse an input file, or an existing plan without ``--overwrite``."""
    folder, name = request.out.rstrip("/"), "plan.npz"
    try:
        if folder.endswith(".npz") and not Path(folder).is_dir():
            folder, _, name = folder.rpartition("/")
            folder = folder or ("/" if request.out.startswith("/") else ".")
        store = open_store(folder or request.out)
        sources = [("--embeddings", source) for source in request.embeddings or ()]
        sources += [(f"--{key}", getattr(request, key)) for key in ("compare", "apart", "together")]
        for option, source in sources:
            if source is not None and split_source(source)[0].resolve() == Path(store.uri, name).resolve():
                raise ConfigError(f"--out: {store.uri}/{name} is what {option} names; choose another")
        if store.exists(name) and not request.overwrite:
            raise ConfigError(f"{store.uri}/{name}: is there already; add --overwrite, or choose another --out")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        raise ConfigError(f"--out: {request.out!r}: {getattr(error, 'strerror', None) or error}") from error
    return store, name


def _load_samples(request: PlanRequest, sampler: Sampler, stages: Stages) -> Samples:
    if (request.embeddings is None) == (request.num_samples is None):
        raise ConfigError("give either --embeddings FILE or, for samplers without embeddings, --num-samples N")
    if request.embeddings is not None:
        stages.begin("reading embeddings")
        table = read_table(request.embeddings)
        if request.temperature is not None:
            check_one_width(table.embeddings)
        ids = {name: _ids_of(request, name, getattr(table, name)) for name in ("apart", "together")}
        return Samples(len(table.embeddings), table.embeddings, table.labels, **ids)
    if request.temperature is not None:
        raise ConfigError("--temperature: losses are measured on embeddings; give --embeddings FILE")
    if sampler.needs_embeddings:
        raise ConfigError(f"sampler {sampler.name!r} plans from embeddings; give --embeddings FILE")
    num_samples = check_count("--num-samples", request.num_samples)
    if num_samples > MAX_SAMPLES:
        raise ConfigError(f"--num-samples: a plan file holds positions below 2^31, found {num_samples}")
    apart, together = (_ids_of(request, name, None) for name in ("apart", "together"))
    return Samples(num_samples, apart=apart, together=together)


def _ids_of(request: PlanRequest, name: str, column: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return the ids of an option's file, or of the column of the embeddings file."""
    path = getattr(request, name)
    if path is None:
        return column
    if column is not None:
        raise ConfigError(f"--{name}: {path}: the embeddings file has a column {name!r}, too; give one of them")
    return read_column(path)


def _check_order(request: PlanRequest) -> None:
    if request.order is None:
        return
    path = Path(request.order)
    if path.suffix != ".npy":
        raise ConfigError(f"--order: expected a file that ends in .npy, found {request.order!r}")
    inputs = [*(request.embeddings or ()), request.apart, request.together]
    if any(source is not None and split_source(source)[0].resolve() == path.resolve() for source in inputs):
        raise ConfigError(f"--order: {path} is an input, too; choose another")
    if path.exists() and not request.overwrite:
        raise ConfigError(f"--order: {path}: is there already; add --overwrite, or choose another")


def _write_order(request: PlanRequest, plan: BatchPlan) -> None:
    """Write the samples in the order in which the plan visits them: one batch after the other."""
    if request.order is None:
        return
    try:
        Path(request.order).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(request.order)) as stream:
            np.save(stream, plan.batches.flatten().numpy())
    except OSError as error:
        raise ConfigError(f"--order: {request.order}: cannot be written: {error.strerror or error}") from error


def _load_other_plan(request: PlanRequest) -> BatchPlan | None:
    try:
        return BatchPlan.load(request.compare) if request.compare is not None else None
    except PlanError as error:
        raise ConfigError(f"--compare: {error}") from error


def _check_fits(other: BatchPlan | None, num_samples: int) -> None:
    try:
        if other is not None:
            other.validate(num_samples, distinct=False)
    except PlanError as error:
        raise ConfigError(f"--compare: a plan of other samples: {error}") from error


def _make_plan(sampler: Sampler, samples: Samples, request: PlanRequest, stages: Stages, stage: str) -> BatchPlan:
    stages.begin(stage)
    try:
        plan = sampler.plan(
            samples.num_samples,
            samples.embeddings,
            seed=request.seed,
            epoch=request.epoch,
            round=request.round,
            map_pools=stages.map_pools,
        )
    except MbclError:
        raise
    except Exception as error:  # whatever the user's sampler raises
        raise failure(error) from error
    return check_plan(plan, sampler, samples.num_samples)
