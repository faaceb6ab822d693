"""The stages of ``gpu.py``: tests, plans, views, accumulation, graphs, ladder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu import Session

    from mbcl.bench.measure import Worth
    from mbcl.bench.train_settings import TrainBenchSettings

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 32
TEMPERATURE = 0.1
REPEATS = 5
SMALL = {"image_size": 32, "encoder": "resnet18:stem=small", "batch_size": 512, "samples": 10_240}
LARGE = {"image_size": 224, "encoder": "resnet18", "batch_size": 256, "samples": 2048}
TOY = {"image_size": 8, "encoder": "resnet_small:widths=[4]", "batch_size": 4, "samples": 12}


# -- tests -------------------------------------------------------------------------------------------------------------


def tests(session: Session) -> None:
    """Run the tests marked gpu with pytest, if it is installed; at toy size they are collected only."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        session.put("tests", "left out", f"not installed: {', '.join(missing)}")
        print(f"tests: left out, not installed: {', '.join(missing)}", flush=True)
        return
    session.case("tests", "gpu", partial(_pytest, session), brief=lambda result: result["output"].splitlines()[-1])


def _pytest(session: Session) -> dict[str, Any]:
    # Only these files: others import Ray.
    files = sorted(path for path in ROOT.glob("tests/**/test_*.py") if "pytest.mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    command += ["--collect-only"] if session.toy else []
    limit = max(1.0, session.seconds_left)
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    result = {"files": [str(path.relative_to(ROOT)) for path in files], "exit_code": found.returncode}
    result["output"] = (found.stdout + found.stderr)[-4000:].strip()
    if found.returncode != 0:
        raise RuntimeError(f"pytest ended with {found.returncode}: {result['output'][-800:]}")
    return result


# -- plans -------------------------------------------------------------------------------------------------------------


def plans(session: Session) -> None:
    """Plan a CIFAR-100-sized data set on the device: as pools, and as one pool."""
    from mbcl.bench.embeddings import mixture

    num_pools, pool = (2, 128) if session.toy else (39, 1280)
    data = mixture(1, num_pools * pool, 0)
    for text in ("kmeans", "refined", "spectral"):
        name = f"{text}, {num_pools} pools of {pool}"
        session.case("plans", name, partial(_plan, session, data, text, pool), brief=_plan_line)
    for text in ("kmeans", "refined"):
        name = f"{text}, one pool of {len(data)}"
        session.case("plans", name, partial(_plan, session, data, text, None), brief=_plan_line)


def _plan(session: Session, data: Any, text: str, pool: int | None) -> dict[str, Any]:
    """Seconds of the first plan and of further ones on the device, and the plan's loss from it and from the CPU."""
    from mbcl.bench.measure import timed_plan, worth
    from mbcl.config.sampler_spec import parse_spec
    from mbcl.samplers._threads import one_thread

    spec = parse_spec(text)
    sampler = spec.whole(BATCH_SIZE) if pool is None else spec.in_pool(BATCH_SIZE, pool)
    on_device = data.to(session.device)

    def loss(batches: Any) -> float:
        values: Worth = worth(batches, data, TEMPERATURE)
        return values.ntxent

    _, first = timed_plan(sampler, on_device, seed=0)
    made = [timed_plan(sampler, on_device, seed=0) for _ in range(REPEATS)]
    with one_thread():
        timed_plan(sampler, data, seed=0)
        on_cpu, cpu_seconds = timed_plan(sampler, data, seed=0)
    result = {"first_seconds": first, "seconds": [seconds for _, seconds in made], "cpu_seconds": cpu_seconds}
    result |= {"loss": loss(made[0][0].batches), "cpu_loss": loss(on_cpu.batches)}
    return result | {"loss_ratio": result["loss"] / result["cpu_loss"]}


def _plan_line(result: dict[str, Any]) -> str:
    milliseconds = 1e3 * median(result["seconds"])
    cpu = f"CPU {1e3 * result['cpu_seconds']:.1f} ms"
    return f"{milliseconds:.1f} ms ({cpu}), loss {result['loss_ratio']:.4f} of the CPU's"


# -- views and accumulation --------------------------------------------------------------------------------------------


def views(session: Session) -> None:
    """Augmented views a second: whole batches on the device against a loader's workers."""
    from dataclasses import asdict

    from mbcl.bench.data import DataBenchSettings, bench_data

    cores = os.cpu_count() or 1
    cases = {8: (16, 8, [0])} if session.toy else {size: (num, 512, [cores]) for size, num in _VIEWS.items()}
    for size, (num, batch_size, workers) in cases.items():
        settings = DataBenchSettings(
            sizes=[size],
            num=num,
            batch_size=batch_size,
            workers=workers,
            repeats=2,
            threads=1,
            device=session.device,
            out=None,
        )
        session.case(
            "views",
            f"{size} pixels, {num} images",
            lambda settings=settings: [asdict(row) for row in bench_data(settings)],
            brief=lambda rows: ", ".join(f"{row['pipeline']} {row['views']:,.0f} views a second" for row in rows),
        )


_VIEWS = {32: 8192, 64: 4096, 224: 1024}
"""Images by size in pixels."""


def accumulation(session: Session) -> None:
    """Peak memory and seconds of cached accumulation against the whole batch, and its error."""
    from accumulation import measure

    shapes = [("resnet18", 32, 1024), ("resnet50", 224, 128)]
    for name, size, batch_size in [("resnet_small", 8, 8)] if session.toy else shapes:
        session.case(
            "accumulation",
            f"{name}, {size} pixels, B = {batch_size}",
            lambda name=name, size=size, batch_size=batch_size: list(
                measure(name, batch_size=batch_size, image_size=size, chunks=[2, 4, 8], device=session.device)
            ),
            brief=lambda rows: ", ".join(f"{row['chunks'] or 'whole'} {row['bytes'] / 2**20:,.0f} MiB" for row in rows),
        )


# -- graphs and the ladder ---------------------------------------------------------------------------------------------


def _settings(session: Session, shape: dict[str, Any], **changes: Any) -> TrainBenchSettings:
    from mbcl.bench.train_settings import TrainBenchSettings

    cores = os.cpu_count() or 1
    content: dict[str, Any] = {
        "epochs": 1 if session.toy else 3,
        "runs": 1,
        "arms": ("ceiling", "shuffle", "planned"),
        "samplers": ("refined:pool=null",),
        "threads": (1 if session.toy else cores,),
        "workers": 0 if session.toy else cores,
        "device": session.device,
        "precision": "float32",
        "compile": False,
        "seed": 0,
    }
    return TrainBenchSettings(**content | shape | changes)


def _shapes(session: Session) -> list[dict[str, Any]]:
    return [TOY] if session.toy else [SMALL, LARGE]


def graphs(session: Session) -> None:
    """The step alone, kernel by kernel and as one CUDA graph."""
    for shape in _shapes(session):
        for precision in ("float32", "bf16"):
            name = f"{shape['encoder']}, {shape['image_size']} pixels, {precision}"
            settings = _settings(session, shape, precision=precision)
            session.case("graphs", name, partial(_graph, settings))


def _graph(settings: TrainBenchSettings) -> dict[str, Any]:
    """Samples a second and the loss after the same number of steps; a CPU has no graphs and is measured without."""
    from mbcl.bench.bare_step import CAPTURE_WARM_UP, BareStep
    from mbcl.bench.train_run import synchronize
    from mbcl.bench.train_settings import Arm, random_images

    experiment = settings.experiment(Arm("ceiling", "graphs", settings.threads[0], True))
    images = random_images(settings.batch_size, settings.image_size, settings.seed)
    num_steps = settings.epochs * settings.steps

    def timed(graph: bool) -> tuple[float, float]:
        step = BareStep(experiment, settings.torch_device)
        fixed = step.fixed_views(images, settings.batch_size, settings.seed)
        if graph:
            run: Callable[[], Any] = step.capture(fixed)
        else:
            run = partial(step, fixed)
            for _ in range(CAPTURE_WARM_UP):
                run()
        synchronize(settings.device)
        start = time.perf_counter()
        for _ in range(num_steps):
            loss = run()
        synchronize(settings.device)
        return num_steps * settings.batch_size / (time.perf_counter() - start), float(loss)

    speed, loss = timed(graph=False)
    result: dict[str, Any] = {"steps": num_steps, "samples_a_second": speed, "loss": loss}
    if settings.device == "cpu":
        return result | {"graph": "left out: CUDA graphs need a CUDA device"}
    graph_speed, graph_loss = timed(graph=True)
    return result | {"graph_samples_a_second": graph_speed, "graph_loss": graph_loss, "ratio": graph_speed / speed}


def ladder(session: Session) -> None:
    """``mbcl bench train`` in this process: float32, bf16 with all arms, and compiled."""
    every = {
        "arms": ("ceiling", "shuffle", "planned", "usual", "lightly"),
        "samplers": ("osgd:k=3,q=1",) if session.toy else ("osgd:k=8,q=2", "spectral:k=4", "refined:pool=null"),
    }
    compiled: dict[str, Any] = {"precision": "bf16", "compile": True}
    variants = {"bf16": {"precision": "bf16", **every}, "float32": {}, "bf16, compiled": compiled}
    if session.toy:  # each compilation takes many seconds
        variants |= {"float32": {"arms": ("ceiling",)}, "bf16, compiled": {**compiled, "arms": ("shuffle",)}}
    for variant, changes in variants.items():
        for shape in _shapes(session):
            name = f"{shape['encoder']}, {shape['image_size']} pixels, {variant}"
            settings = _settings(session, shape, **changes)
            session.case("ladder", name, partial(_climb, session, name, settings), brief=lambda record: "done")


def _climb(session: Session, name: str, settings: TrainBenchSettings) -> dict[str, Any]:
    from rich.console import Console

    from mbcl.bench.train import TrainBenchReport, measure_arms, print_report
    from mbcl.bench.train_arms import run_arm
    from mbcl.console.stages import Stages

    settings.check()

    def run(arm: Any, settings: TrainBenchSettings) -> Any:
        session.check_time()
        return run_arm(arm, settings)

    def save(report: Any) -> None:
        session.put("ladder", f"{name}, so far", report.record())

    report = TrainBenchReport(settings)
    with Stages(quiet=True) as stages:
        measure_arms(report, run, stages, save)
    print_report(Console(highlight=False, soft_wrap=True), report)
    session.drop("ladder", f"{name}, so far")
    return report.record()


STAGES: dict[str, Callable[[Session], None]] = {
    "tests": tests,
    "plans": plans,
    "views": views,
    "accumulation": accumulation,
    "graphs": graphs,
    "ladder": ladder,
}
