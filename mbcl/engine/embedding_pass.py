"""The embedding pass: projections of two views of many samples, without gradients, for planning and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mbcl.data import ImageSet, clean_views, make_views
from mbcl.distributed.collectives import World
from mbcl.engine.precision import Compute
from mbcl.models import ContrastiveModel
from mbcl.plan import Embeddings
from mbcl.planner import random_chunks
from mbcl.seeding import derive

_MOST_IMAGES = 10_000
"""The images whose statistics untrained batch norms get."""


@dataclass(frozen=True)
class ViewKey:
    """The random key of views: with data-set position and view number it determines every augmentation parameter.

    Args:
        seed: seed of the views' random stream (training and evaluation have different ones).
        epoch: epoch of the views.
        augmented: False for the image itself, twice.
    """

    seed: int
    epoch: int = 0
    augmented: bool = True


def two_views(images: ImageSet, positions: Tensor, key: ViewKey) -> Tensor:
    """Compute both views of the samples at (B,) int64 data-set positions on the CPU, on the device of the images.

    Returns:
        (2B, C, H, W) float32: all first views, then all second views.
    """
    pixels = images.pixels(positions)
    if not key.augmented:
        view = clean_views(pixels, images=images)
        return torch.cat([view, view])
    return make_views(pixels, positions, images=images, seed=key.seed, epoch=key.epoch, view=(0, 1))


@contextmanager
def _normalisation(model: nn.Module, mode: str) -> Iterator[None]:
    """Set ``train`` or ``eval`` normalisation temporarily, without collectives or updates of running statistics.

    For ``train`` it uses a rule of torch: a batch norm in evaluation mode without running statistics normalises with
    the batch's statistics. Synchronised layers follow the rule, too, and do not synchronise then.
    """
    modes = [(module, module.training) for module in model.modules()]
    statistics = [(m, m.running_mean, m.running_var) for m in model.modules() if isinstance(m, _BatchNorm)]
    model.train(mode == "train")
    if mode == "train":
        for layer, _, _ in statistics:
            layer.eval()
            layer.running_mean = layer.running_var = None
    try:
        yield
    finally:
        for layer, mean, var in statistics:
            layer.running_mean, layer.running_var = mean, var
        for module, training in modes:
            module.training = training


@torch.no_grad()
def embed(
    model: ContrastiveModel,
    images: ImageSet,
    key: ViewKey,
    *,
    mode: str,
    batch_size: int,
    world: World,
    compute: Compute | None = None,
    round: int = 0,
) -> Embeddings:
    """Compute this rank's share of the projections of a whole data set.

    The samples are split into nearly equal random chunks of at most ``batch_size``, and one rank computes a whole
    chunk. So equal weights give bitwise equal embeddings on any number of ranks. Planners require that, because the
    plan is not a continuous function of the embeddings.

    Args:
        model: encoder and projector, not wrapped in DDP.
        images: the data set.
        key: selects the views.
        mode: ``train`` normalises with the chunk's statistics (as published), ``eval`` with the running ones;
            neither changes the model.
        batch_size: the most samples of one forward pass.
        world: the ranks.
        compute: number format and memory format of the forward pass; plain float32 if omitted.
        round: with seed and epoch of ``key`` it determines the chunks.

    Returns:
        Embeddings in float32 or better; ``indices`` are the data-set positions of this rank's rows. A rank may have no
        rows.
    """
    local_chunks = random_chunks(len(images), batch_size, key.seed, key.epoch, round)[world.rank :: world.size]
    compute = compute or Compute(world.device)
    dtype = next(model.parameters()).dtype
    empty = torch.zeros((0, model.projector.out_features), device=world.device, dtype=dtype)
    with _normalisation(model, mode), compute.autocast():
        inputs = (two_views(images, positions, key) for positions in local_chunks)
        pairs = [(empty, empty), *(model(compute.layout(views.to(dtype))).chunk(2) for views in inputs)]
    z1, z2 = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Embeddings(z1, z2, torch.cat([torch.arange(0), *local_chunks]))


@torch.no_grad()
def set_statistics(
    model: nn.Module, num_images: int, inputs: Callable[[Tensor], Tensor], *, seed: int, batch_size: int = 256
) -> None:
    """Set the running statistics of all batch norms to the mean over random chunks of the training images.

    At most 10,000 images, a function of the seed, are used. Models without batch norm do not change.

    Args:
        model: on any device; it ends in evaluation mode. Its batch norms are not synchronised.
        num_images: N.
        inputs: maps (B,) int64 positions of images to the model's input.
        seed: of the chunks.
        batch_size: the most images of a forward pass.
    """
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    dtype = next(model.parameters()).dtype
    seed = derive(seed, "statistics of initial weights")
    rows = torch.cat(random_chunks(num_images, batch_size, seed))[:_MOST_IMAGES]
    for chunk in rows.tensor_split(-(-len(rows) // batch_size)):
        model(inputs(chunk).to(dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
