"""Two views' projections of many samples, without gradients: what samplers plan on and evaluation measures."""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True)
class ViewKey:
    """Which views: with the data-set position and the view's number this determines every random parameter.

    Args:
        seed: seed of the views' stream (training and evaluation have different ones).
        epoch: epoch of the views.
        augmented: False for the image itself, twice.
    """

    seed: int
    epoch: int = 0
    augmented: bool = True


def two_views(images: ImageSet, positions: Tensor, key: ViewKey) -> Tensor:
    """Both views of some samples.

    Args:
        images: the data set, on the device that computes.
        positions: (B,) int64 CPU tensor of data-set positions.
        key: which views.

    Returns:
        (2B, C, H, W) float32, all first views, then all second ones.
    """
    pixels = images.pixels(positions)
    if not key.augmented:
        view = clean_views(pixels, images=images)
        return torch.cat([view, view])
    return torch.cat(
        [make_views(pixels, positions, images=images, seed=key.seed, epoch=key.epoch, view=view) for view in (0, 1)]
    )


@contextmanager
def _normalisation(model: nn.Module, mode: str) -> Iterator[None]:
    """Put the model into ``train`` or ``eval`` mode for a while: no collectives, running statistics left alone.

    A batch norm in evaluation mode that has no running statistics normalises with the batch's: torch's rule, which
    synchronised layers follow too, without synchronising.
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
) -> Embeddings:
    """This rank's share of the projections of a whole data set.

    The samples are cut into nearly equal chunks of at most ``batch_size``, and each chunk is one rank's work, whole:
    with equal weights the embeddings are equal to the last bit on any number of ranks. Planners need that, for the
    plan is not a continuous function of the embeddings.

    Args:
        model: encoder and projector, not wrapped in DDP.
        images: the data set.
        key: which views.
        mode: ``train`` normalises with the chunk's statistics (as published), ``eval`` with the running ones;
            neither changes the model.
        batch_size: samples of a forward pass.
        world: the ranks.
        compute: number and memory format of the forward pass; plain float32 if omitted.

    Returns:
        Embeddings in float32 or better whose ``indices`` are the data-set positions of this rank's rows; a rank may
        have none.
    """
    num_samples = len(images)
    chunks = torch.arange(num_samples).tensor_split(-(-num_samples // batch_size))
    mine = chunks[world.rank :: world.size]
    compute = compute or Compute(world.device)
    dtype = next(model.parameters()).dtype
    empty = torch.zeros((0, model.projector.out_features), device=world.device, dtype=dtype)
    views_1, views_2 = [empty], [empty]
    with _normalisation(model, mode), compute.autocast():
        for positions in mine:
            projections = model(compute.layout(two_views(images, positions, key).to(dtype)))
            first, second = projections.chunk(2)
            views_1.append(first)
            views_2.append(second)
    return Embeddings(torch.cat(views_1), torch.cat(views_2), torch.cat([torch.arange(0), *mine]))
