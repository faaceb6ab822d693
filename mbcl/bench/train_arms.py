"""The arms of ``mbcl bench train``: the ceiling, mbcl's trainer, the usual pipeline and lightly's loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import torch

from mbcl.bench.bare_step import BareStep
from mbcl.bench.train_run import ArmRun, PeakMemory, synchronize
from mbcl.bench.train_settings import WARM_UP_EPOCHS, Arm, Kind, TrainBenchSettings, random_images
from mbcl.bench.usual_pipeline import run_lightly, run_usual
from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, Row, Trainer
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.metrics_log import read_rows
from mbcl.engine.step import Learner
from mbcl.io.store import LocalStore

WARM_UP_STEPS = 10


def run_arm(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Run one arm in this process, on its number of threads, and return its measurements."""
    runs: dict[Kind, Callable[[Arm, TrainBenchSettings], ArmRun]] = {
        "ceiling": run_ceiling,
        "trainer": run_trainer,
        "usual": run_usual,
        "lightly": run_lightly,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(arm.threads)
    try:
        return runs[arm.kind](arm, settings)
    finally:
        torch.set_num_threads(before)


def run_ceiling(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Repeat forward, loss, backward and optimiser on one batch of views in memory."""
    memory = PeakMemory(settings.device)
    step = BareStep(settings.experiment(arm), settings.torch_device)
    images = random_images(settings.batch_size, settings.image_size, settings.seed)
    views = step.fixed_views(images, settings.batch_size, settings.seed)
    for _ in range(min(WARM_UP_EPOCHS * settings.steps, WARM_UP_STEPS)):
        step(views)
    synchronize(settings.device)
    start = time.perf_counter()
    losses = [step(views) for _ in range(settings.epochs * settings.steps)]
    synchronize(settings.device)
    total = time.perf_counter() - start
    loss = float(torch.stack(losses).mean())
    return ArmRun.of(
        settings, total=total, stages={"step": total}, memory=memory.peak(), helpers=memory.helpers, loss=loss
    )


def run_trainer(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Train with mbcl's trainer: seconds are those of its rows; views are timed alone afterwards."""
    memory = PeakMemory(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        world, observers = World(device=settings.torch_device), [_SampleMemory(memory)]
        trainer = Trainer(settings.experiment(arm), world=world, store=store, observers=observers)
        trainer.run()
        rows = read_rows(store)[WARM_UP_EPOCHS:-1]
    peak = memory.peak()
    sums = {
        key: sum(_number(row, f"time/{key}") for row in rows) for key in ("train", "embed", "plan", "wait", "total")
    }
    views = settings.epochs * _seconds_of_views(trainer.learner, settings)
    stages = {"views": views, "step": sums["train"] - views}
    if arm.sampler["name"] != "shuffle":
        stages |= {key: sums[key] for key in ("embed", "plan", "wait")}
    stages["other"] = sums["total"] - sums["train"] - sums["embed"] - sums["wait"]
    loss = sum(_number(row, "train/loss") for row in rows) / len(rows)
    return ArmRun.of(settings, total=sums["total"], stages=stages, memory=peak, helpers=memory.helpers, loss=loss)


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert value is not None, key
    return float(value)


class _SampleMemory(BaseObserver):
    """Samples the memory of the planner's process at the end of every epoch, while the process lives."""

    def __init__(self, memory: PeakMemory) -> None:
        self._memory = memory

    def on_epoch(self, row: Row) -> None:
        self._memory.sample()


def _seconds_of_views(learner: Learner, settings: TrainBenchSettings) -> float:
    """Return the seconds of making an epoch's views as the steps make them."""
    batches = torch.arange(settings.steps * settings.batch_size).split(settings.batch_size)
    synchronize(settings.device)
    start = time.perf_counter()
    for batch in batches:
        learner.compute.layout(two_views(learner.images, batch, ViewKey(learner.seed)))
    synchronize(settings.device)
    return time.perf_counter() - start
