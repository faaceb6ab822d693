"""The usual way to train: transforms of one image at a time in the workers of a DataLoader, and lightly's SimCLR loop.

Letters: B samples of a batch, S pixels a side.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mbcl.bench.bare_step import BareStep
from mbcl.bench.data import UsualViews
from mbcl.bench.train_run import ArmRun, PeakMemory, synchronize
from mbcl.bench.train_settings import Arm, TrainBenchSettings, random_images
from mbcl.data import ImageSet
from mbcl.seeding import derive, torch_generator

WARM_UP_EPOCHS = 1
"""Epochs that do not count: the workers start."""


def run_usual(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Train with torchvision's transforms of Pillow images in the workers of a DataLoader.

    The chain and its strengths are those of the trainer's views; model, objective and optimiser are the trainer's.
    """
    memory = PeakMemory(settings.device)
    step = BareStep(settings.experiment(arm), settings.torch_device)
    images = random_images(settings.samples, settings.image_size, settings.seed)

    def train(batch: tuple[Tensor, Tensor]) -> Tensor:
        return step(step.compute.layout(torch.cat([step.place(view) for view in batch])))

    return _run_epochs(_loader(UsualViews(images), settings), train, settings, memory)


def lightly_is_installed() -> bool:
    """Whether the package lightly can be imported."""
    return importlib.util.find_spec("lightly") is not None


def run_lightly(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
    """Train as lightly's example of SimCLR does: its transform, projection head and loss, two forward passes a step.

    Encoder, optimiser, width of the head and temperature are the trainer's.
    """
    from lightly.loss import NTXentLoss

    memory = PeakMemory(settings.device)
    experiment = settings.experiment(arm)
    step = BareStep(experiment, settings.torch_device)
    model = _with_lightly_head(step, experiment.projector.hidden, experiment.projector.dim, settings.seed)
    criterion = NTXentLoss(temperature=experiment.objective["temperature"])
    optimizer = experiment.build_optimizer(model.parameters())
    images = random_images(settings.samples, settings.image_size, settings.seed)

    def train(batch: tuple[Tensor, Tensor]) -> Tensor:
        first, second = batch
        with step.compute.autocast():
            z0, z1 = model(step.place(first)), model(step.place(second))
            loss: Tensor = criterion(z0, z1)
        step.scaler.scale(loss).backward()
        step.scaler.step(optimizer)
        step.scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return _run_epochs(_loader(_LightlyViews(images), settings), train, settings, memory)


def _with_lightly_head(step: BareStep, hidden: int, dim: int, seed: int) -> nn.Module:
    """Return the encoder of the step with lightly's projection head, whose weights are drawn from the seed."""
    from lightly.models.modules import SimCLRProjectionHead

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "bench/lightly head"))
        head = SimCLRProjectionHead(step.model.encoder.out_features, hidden, dim)
    model = nn.Sequential(step.model.encoder, head.to(step.dtype))
    step.compute.place(model).train()
    return model


class _LightlyViews(Dataset[tuple[Tensor, Tensor]]):
    """Two views of one Pillow image at a time by lightly's SimCLRTransform with its defaults."""

    def __init__(self, images: ImageSet) -> None:
        from lightly.transforms import SimCLRTransform

        self._pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._transform = SimCLRTransform(input_size=images.image_size)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        """Return both views, (3, S, S) float32 each."""
        from PIL import Image

        first, second = self._transform(Image.fromarray(self._pixels[row]))
        return first, second


def _loader(views: Dataset[tuple[Tensor, Tensor]], settings: TrainBenchSettings) -> DataLoader[Any]:
    return DataLoader(
        views,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=settings.device == "cuda",
        generator=torch_generator(settings.seed, "bench/loader"),
    )


def _run_epochs(
    loader: Iterable[tuple[Tensor, Tensor]],
    train: Callable[[tuple[Tensor, Tensor]], Tensor],
    settings: TrainBenchSettings,
    memory: PeakMemory,
) -> ArmRun:
    """Train the epochs and time those that count: in all, and the seconds in which the loop waited for the loader."""
    start = waited = 0.0
    losses: list[Tensor] = []
    for epoch in range(WARM_UP_EPOCHS + settings.epochs):
        if epoch == WARM_UP_EPOCHS:
            synchronize(settings.device)
            start, waited, losses = time.perf_counter(), 0.0, []
        before = time.perf_counter()
        for batch in loader:
            waited += time.perf_counter() - before
            losses.append(train(batch))
            before = time.perf_counter()
        memory.sample()
    synchronize(settings.device)
    total = time.perf_counter() - start
    return ArmRun.of(
        settings,
        total=total,
        stages={"wait": waited, "step": total - waited},
        memory=memory.peak(),
        helpers=memory.helpers,
        loss=float(torch.stack(losses).mean()),
    )
