"""The embedding pass: projections of two views of many samples, without gradients, for planning and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mbcl.data.samples import ONE_DRAW, SampleSet
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.precision import Compute
from mbcl.models import ContrastiveModel, Encoder
from mbcl.plan import Embeddings
from mbcl.planner import random_chunks
from mbcl.seeding import derive

_MOST_SAMPLES = 10_000
"""The samples whose statistics untrained batch norms get."""
_SEED_OF_DRAWS = 0
_IMAGES_ON_CPU, _PIXELS_ON_CPU = 256, 2**17
"""The most images of a forward pass of several draws on a CPU, and their pixels; see ``benchmarks/draws.py``."""


@dataclass(frozen=True)
class ViewKey:
    """The random key of views: with data-set position and view number it determines every augmentation parameter.

    Args:
        seed: seed of the views' random stream (training and evaluation have different ones).
        epoch: epoch of the views.
        augmented: False for the sample itself.
    """

    seed: int
    epoch: int = 0
    augmented: bool = True


def two_views(samples: SampleSet, positions: Tensor, key: ViewKey, draws: range = ONE_DRAW) -> Tensor:
    """Compute both views of the samples at (B,) int64 data-set positions on the CPU, on the device of the set.

    The views of draw d have the numbers 2d and 2d + 1, so that a draw does not depend on the others.

    Returns:
        (2GB, ...) float32 for G draws: all first views, draw by draw, then all second views.
    """
    if not key.augmented:
        return samples.clean_views(positions, draws=draws)
    return samples.views(positions, seed=key.seed, epoch=key.epoch, draws=draws)


def key_of_draws(seed: int, purpose: str, draws: int, *, augmented: bool = True) -> ViewKey:
    """Return the key of the views over whose draws a metric is a mean.

    ``augmented``: whether a draw augments, as :attr:`~mbcl.data.samples.SampleSet.draws_when_measured` of the samples.

    Several draws are the same for all seeds: the noise that their mean still has is then common to all trials. One draw
    is that of the experiment's own seed, as published.
    """
    return ViewKey(derive(seed if draws == 1 else _SEED_OF_DRAWS, purpose), augmented=augmented)


def pass_size(draws: int, samples: SampleSet, batch_size: int, device: torch.device) -> int:
    """Return the most samples of a forward pass: ``batch_size``, and with several draws fewer on a CPU.

    Activations that exceed its caches make a pass slower there. One draw is computed as published, in larger passes.
    """
    if draws == 1 or device.type != "cpu":
        return batch_size
    return min(batch_size, _IMAGES_ON_CPU, max(16, _PIXELS_ON_CPU // samples.view_size))


def groups_of_draws(draws: int, num_samples: int, batch_size: int) -> list[range]:
    """Divide draws into nearly equal groups whose samples fit one forward pass, of one draw at least.

    Example:
        >>> groups_of_draws(5, num_samples=144, batch_size=512)
        [range(0, 3), range(3, 5)]
    """
    num_groups = -(-draws // max(1, batch_size // num_samples))
    bounds = [-(-draws * group // num_groups) for group in range(num_groups + 1)]
    return [range(*pair) for pair in pairwise(bounds)]


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


def embed(
    model: ContrastiveModel,
    samples: SampleSet,
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
        samples: the data set.
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
    (embeddings,) = embed_draws(
        model, samples, key, draws=1, mode=mode, batch_size=batch_size, world=world, compute=compute, round=round
    )
    return embeddings


@torch.no_grad()
def embed_draws(
    model: ContrastiveModel,
    samples: SampleSet,
    key: ViewKey,
    *,
    draws: int,
    mode: str,
    batch_size: int,
    world: World,
    compute: Compute | None = None,
    round: int = 0,
) -> list[Embeddings]:
    """Compute what :func:`embed` does for each of several draws of the views.

    Of a small data set several draws go through the model in one pass, and every rank computes some of them.
    """
    batch_size = pass_size(draws, samples, batch_size, world.device)
    chunks = random_chunks(len(samples), batch_size, key.seed, key.epoch, round)
    compute = compute or Compute(world.device)
    dtype = next(model.parameters()).dtype
    embeddings = []
    with _normalisation(model, mode), compute.autocast():
        for number, group in enumerate(groups_of_draws(draws, len(samples), batch_size)):
            local_chunks = chunks[(world.rank - number) % world.size :: world.size]
            pairs = [[torch.zeros((len(group), 0, model.projector.out_features), device=world.device, dtype=dtype)] * 2]
            for positions in local_chunks:
                views = two_views(samples, positions, key, group)
                pairs.append(model(compute.layout(views.to(dtype))).unflatten(0, (2, len(group), -1)).unbind())
            z1_GND, z2_GND = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
            indices = torch.cat([torch.arange(0), *local_chunks])
            embeddings += [Embeddings(z1, z2, indices) for z1, z2 in zip(z1_GND, z2_GND, strict=True)]
    return embeddings


@torch.no_grad()
def clean_features(
    model: ContrastiveModel, samples: SampleSet, *, batch_size: int, world: World, compute: Compute
) -> Tensor:
    """Compute the features of all samples without augmentation, (N, F), in evaluation mode; a collective call.

    The ranks share the passes, which are the same on any number of ranks, and every rank gets all features.
    """
    passes = torch.arange(len(samples)).tensor_split(-(-len(samples) // batch_size))[world.rank :: world.size]
    dtype = next(model.parameters()).dtype
    width = cast(Encoder, model.encoder).out_features
    parts = [samples.by_sample(torch.zeros((0, width), device=world.device, dtype=dtype))]
    with _normalisation(model, "eval"), compute.autocast():
        for positions in passes:
            inputs = samples.clean(positions).to(dtype)
            parts.append(samples.by_sample(model.features(compute.layout(inputs))))
    rows = collectives.all_gather_ragged(torch.cat(parts), world)
    positions = collectives.all_gather_ragged(torch.cat([torch.arange(0), *passes]), world)
    return rows[positions.argsort().to(rows.device)]


@torch.no_grad()
def set_statistics(
    model: nn.Module, num_samples: int, inputs: Callable[[Tensor], Tensor], *, seed: int, batch_size: int = 256
) -> None:
    """Set the running statistics of all batch norms to the mean over random chunks of the training samples.

    At most 10,000 of them, a function of the seed, are used. Models without batch norm do not change.

    Args:
        model: on any device; it ends in evaluation mode. Its batch norms are not synchronised.
        num_samples: N.
        inputs: maps (B,) int64 positions of samples to the model's input.
        seed: of the chunks.
        batch_size: the most samples of a forward pass.
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
    rows = torch.cat(random_chunks(num_samples, batch_size, seed))[:_MOST_SAMPLES]
    for chunk in rows.tensor_split(-(-len(rows) // batch_size)):
        model(inputs(chunk).to(dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
