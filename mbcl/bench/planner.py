"""``mbcl bench planner``: tables of speed, loss and growth, relative to the published planner in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mbcl import __version__
from mbcl.bench.growth import grow
from mbcl.bench.measure import environment, timed_plan
from mbcl.bench.pools import PUBLISHED, RANDOM, baseline, compare, compare_whole, geometric_means, pools_of
from mbcl.bench.settings import PlannerBenchSettings
from mbcl.config.sampler_spec import Spec
from mbcl.console import align_columns
from mbcl.errors import ConfigError, DataError, pluralize
from mbcl.io.store import Store, open_store, write_text
from mbcl.samplers._threads import one_thread

FILE = "planner.json"

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def bench_planner(settings: PlannerBenchSettings) -> None:
    """Measure, print each table when it is complete, and write ``planner.json`` if ``settings.out`` names a folder."""
    specs = settings.check()
    store = None if settings.out is None else open_store(settings.out)
    if store is not None and store.exists(FILE) and not settings.overwrite:
        raise ConfigError(f"{store.uri}/{FILE}: is there already; add --overwrite, or choose another --out")
    console = Console(highlight=False, soft_wrap=True)
    info = environment(settings.device)
    console.print(f"mbcl {__version__}, " + ", ".join(f"{name} {value}" for name, value in info.items()))
    unit = "CPU seconds of one thread" if settings.device == "cpu" else "wall seconds, the baseline's on one CPU thread"
    console.print(f"B = {settings.batch_size}, temperature {settings.temperature:g}; times are {unit}")
    record: Row = {"mbcl": __version__, "environment": info, "time": unit, "settings": asdict(settings)}
    with one_thread():
        _measure(settings, specs, console, record, store)


def _measure(
    settings: PlannerBenchSettings, specs: Sequence[Spec], console: Console, record: Row, store: Store | None
) -> None:
    names = _available(settings, console)
    record["warm_up_seconds"] = _warm_up(names[0], specs, settings, console)
    _save(store, record)
    record["pools"] = []
    for name in names:
        with console.status(f"{name}: {pluralize(len(specs), 'sampler')} and the published planner"):
            record["pools"] += compare(name, specs, settings)
    record["geometric_means"] = geometric_means(record["pools"])
    _print_pools(console, record, settings)
    _save(store, record)
    if settings.whole is not None:
        record["whole"] = _whole(settings, settings.whole, names, specs, console)
        _save(store, record)
    if settings.growth:
        _growth(settings, specs, console, record, store)


def _save(store: Store | None, record: Row) -> None:
    """Write the record; called after every table, so that an interrupted run leaves the tables it completed."""
    if store is not None:
        write_text(store, FILE, json.dumps(record, indent=1))


def _available(settings: PlannerBenchSettings, console: Console) -> list[str]:
    """Return the data sets that can be made and fill a pool; print one line for each of the others.

    Raises:
        ConfigError: if there is none.
    """
    names = []
    for name in settings.data_sets:
        try:
            with console.status(f"making {name}"):
                num_samples = len(settings.data_set(name, settings.pool * settings.pools, 0))
        except DataError as error:
            if settings.data_dir is not None:
                raise
            console.print(f"{name} left out: --data-dir must name the folder of Fashion-MNIST's files: {error}")
            continue
        if num_samples < settings.pool:
            console.print(f"{name} left out: it has {num_samples} samples, fewer than a pool of {settings.pool}")
            continue
        names.append(name)
    if not names:
        raise ConfigError(f"--data-sets: none of {' '.join(settings.data_sets)} can be measured, see above")
    return names


def _warm_up(name: str, specs: Sequence[Spec], settings: PlannerBenchSettings, console: Console) -> dict[str, float]:
    """Return the seconds of each planner's first plan, not counted: it imports libraries and compiles or loads code."""
    _, data = next(pools_of(name, settings, 0))
    seconds = {PUBLISHED: baseline(data, settings, 0).seconds}
    for spec in specs:
        sampler = spec.in_pool(settings.batch_size, settings.pool)
        _, seconds[spec.text] = timed_plan(sampler, data, seed=0, spec=spec)
    first_plans = ", ".join(f"{method} {value:.2f} s" for method, value in seconds.items())
    console.print(f"first plan, not counted below: {first_plans}")
    return seconds


def _whole(
    settings: PlannerBenchSettings,
    num_samples: int,
    names: Sequence[str],
    specs: Sequence[Spec],
    console: Console,
) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        data = settings.data_set(name, num_samples, 0)
        if len(data) < num_samples:
            console.print(f"{name} has {len(data)} samples: not planned as a whole of {num_samples}")
            continue
        data = data.first(num_samples)
        with console.status(f"{name}: plans of {num_samples} samples"):
            rows += compare_whole(data, specs, settings)
    if rows:
        num_planned, num_pools = min(settings.pools, num_samples // settings.pool), num_samples // settings.pool
        console.print(
            f"\nWhole data, {num_samples} samples, seeds: {settings.seeds}. The published planner: {num_planned} "
            f"of its {pluralize(num_pools, 'random pool')} of {settings.pool}, time x {num_pools / num_planned:g}"
        )
        seconds: Column = ("seconds", lambda row: "" if row["method"] == RANDOM else f"{row['seconds']:.2f}")
        _print_table(console, rows, [seconds, *_LOSS_COLUMNS])
    return rows


def _growth(
    settings: PlannerBenchSettings, specs: Sequence[Spec], console: Console, record: Row, store: Store | None
) -> None:
    protocol = {key: getattr(settings, key) for key in ("batch_size", "pool", "temperature", "device")}
    rows: list[Row] = []
    record["growth"] = rows
    with console.status("growth") as status:
        for row in grow(specs, settings.growth, **protocol):
            rows.append(row)
            status.update(f"growth, after {row['method']} of {row['num_samples']} samples")
            _save(store, record)  # a row may take minutes
    console.print("\nGrowth on mix_1: memory is the peak above the inputs, and in multiples of both")
    columns: list[Column] = [
        ("samples", lambda row: str(row["num_samples"])),
        ("seconds", lambda row: f"{row['seconds']:.2f}"),
        ("us a sample", lambda row: f"{row['microseconds_a_sample']:.1f}"),
        ("exponent", lambda row: f"{row['exponent']:.2f}" if row.get("exponent") is not None else ""),
        ("memory", lambda row: f"{row['extra_bytes'] / 1e6:.0f} MB"),
        ("of inputs", lambda row: f"{row['extra_of_inputs']:.2f}"),
        ("coverage", lambda row: f"{row['coverage']:.2f}"),
        ("lift", lambda row: f"{row['ntxent_lift']:.2f}"),
        ("CLIP lift", lambda row: f"{row['clip_lift']:.2f}"),
    ]
    _print_table(console, rows, columns)


# -- printing -----------------------------------------------------------------------------------------------------

_LOSS_COLUMNS: list[Column] = [
    ("NT-Xent", lambda row: f"{row['ntxent_ratio']:.3f}"),
    ("CLIP", lambda row: f"{row['clip_ratio']:.3f}"),
    ("lift", lambda row: f"{row['ntxent_lift']:.2f}"),
    ("CLIP lift", lambda row: f"{row['clip_lift']:.2f}"),
    ("same class", lambda row: f"{row['same_class']:.3f}"),
    ("coverage", lambda row: f"{row['coverage']:.2f}"),
]


def _print_pools(console: Console, record: Row, settings: PlannerBenchSettings) -> None:
    console.print(
        f"\nThe same random pools of {settings.pool}, up to {settings.pools} a data set and seed, seeds: "
        f"{settings.seeds}. NT-Xent and CLIP: plan loss over the published planner's; lift: over random batches'"
    )
    columns: list[Column] = [
        ("ms a pool", lambda row: f"{1e3 * row['seconds']:.1f}" if row["method"] != RANDOM else ""),
        ("speed", lambda row: f"{row['speedup']:.1f}x" if row["method"] != RANDOM else ""),
        *_LOSS_COLUMNS,
    ]
    _print_table(console, record["pools"], columns)
    console.print("\nGeometric means over data sets (least in brackets)")
    means: list[Column] = [
        ("speed", lambda row: f"{row['speedup']:.1f}x ({row['least_speedup']:.1f}x)"),
        ("NT-Xent", lambda row: f"{row['ntxent_ratio']:.3f} ({row['least_ntxent_ratio']:.3f})"),
        ("CLIP", lambda row: f"{row['clip_ratio']:.3f} ({row['least_clip_ratio']:.3f})"),
    ]
    _print_table(console, record["geometric_means"], means)
    console.print("\nThe published planner by stage, ms a pool")
    stages = [row for row in record["pools"] if row["method"] == PUBLISHED]
    by_stage: list[Column] = [
        (stage, lambda row, stage=stage: f"{1e3 * row['stages'][stage]:.0f}")  # type: ignore[misc]
        for stage in stages[0]["stages"]
    ]
    _print_table(console, stages, [*by_stage, ("total", lambda row: f"{1e3 * row['seconds']:.0f}")])


def _print_table(console: Console, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Print a table with left-aligned names and right-aligned numbers, each column as wide as its longest cell."""
    names = [key for key in ("data_set", "method") if key in rows[0]]
    lines = [[*(name.replace("_", " ") for name in names), *(title for title, _ in columns)]]
    lines += [[*(row[name] for name in names), *(format_cell(row) for _, format_cell in columns)] for row in rows]
    for line in align_columns(lines, len(names)):
        console.print(line, markup=False)
