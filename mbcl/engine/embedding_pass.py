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

from mbcl.data.samples import TWO_VIEWS, SampleSet
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


def two_views(samples: SampleSet, positions: Tensor, key: ViewKey) -> Tensor:
    """Compute both views of the samples at (B,) int64 data-set positions on the CPU, on the device of the set.

    Returns:
        (2B, ...) float32: all first views, then all second views.
    """
    return views_of(samples, positions, key, TWO_VIEWS)


def views_of(samples: SampleSet, positions: Tensor, key: ViewKey, numbers: range) -> Tensor:
    """Compute the V views of these numbers as :func:`two_views` does, one after another: (VB, ...) float32.

    G draws of the two views are G + 1 views: draw d has the views d and d + 1, so that each view but the first and the
    last is embedded once for two draws, and a draw does not depend on how many there are. Draws that share a view are
    correlated; the mean over G draws still varies less than over G/2 independent ones, which take as many views.
    """
    if key.augmented:
        return samples.views(positions, seed=key.seed, epoch=key.epoch, numbers=numbers)
    assert numbers == TWO_VIEWS, f"{numbers}: all views of a sample as it is are the same"
    return samples.clean_views(positions)


def key_of_draws(seed: int, purpose: str, draws: int, *, augmented: bool = True) -> ViewKey:
    """Return the key of the views over whose draws a metric is a mean.

    ``augmented``: whether a draw augments, as :attr:`~mbcl.data.samples.SampleSet.draws_when_measured` of the samples.

    Several draws are the same for all seeds: the noise that their mean still has is then common to all trials. One draw
    is that of the experiment's own seed, as published.
    """
    return ViewKey(derive(seed if draws == 1 else _SEED_OF_DRAWS, purpose), augmented=augmented)


def pass_size(num_views: int, samples: SampleSet, batch_size: int, device: torch.device) -> int:
    """Return the most samples of a forward pass of two views: ``batch_size``, and with several draws fewer on a CPU.

    Activations that exceed its caches make a pass slower there. One draw is computed as published, in larger passes.
    """
    if num_views == 2 or device.type != "cpu":
        return batch_size
    return min(batch_size, _IMAGES_ON_CPU, max(16, _PIXELS_ON_CPU // samples.view_size))


def groups_of_views(num_views: int, num_samples: int, batch_size: int) -> list[range]:
    """Divide views into nearly equal groups that fit one forward pass: two views of ``batch_size`` samples.

    Example:
        >>> groups_of_views(6, num_samples=144, batch_size=256)
        [range(0, 3), range(3, 6)]
    """
    assert num_samples <= batch_size, f"{num_samples} samples in a pass of {batch_size}"
    num_groups = -(-num_views // (2 * batch_size // num_samples))
    bounds = [-(-num_views * group // num_groups) for group in range(num_groups + 1)]
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
    (z1, indices), (z2, _) = embed_views(
        model, samples, key, num_views=2, mode=mode, batch_size=batch_size, world=world, compute=compute, round=round
    )
    return Embeddings(z1, z2, indices)


@torch.no_grad()
def embed_views(
    model: ContrastiveModel,
    samples: SampleSet,
    key: ViewKey,
    *,
    num_views: int,
    mode: str,
    batch_size: int,
    world: World,
    compute: Compute | None = None,
    round: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Compute what :func:`embed` does for each of several views, see :func:`views_of`.

    Of a small data set several views go through the model in one pass, and every rank computes some of them.

    Returns:
        For each view this rank's rows, (M, D), and their data-set positions, (M,) int64, which differ between views.
    """
    batch_size = pass_size(num_views, samples, batch_size, world.device)
    chunks = random_chunks(len(samples), batch_size, key.seed, key.epoch, round)
    compute = compute or Compute(world.device)
    dtype = next(model.parameters()).dtype
    embedded = []
    with _normalisation(model, mode), compute.autocast():
        for number, group in enumerate(groups_of_views(num_views, max(map(len, chunks)), batch_size)):
            local_chunks = chunks[(world.rank - number) % world.size :: world.size]
            parts = [torch.zeros((len(group), 0, model.projector.out_features), device=world.device, dtype=dtype)]
            for positions in local_chunks:
                views = views_of(samples, positions, key, group)
                parts.append(model(compute.layout(views.to(dtype))).unflatten(0, (len(group), -1)))
            indices = torch.cat([torch.arange(0), *local_chunks])
            embedded += [(torch.cat(rows), indices) for rows in zip(*parts, strict=True)]
    return embedded


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
