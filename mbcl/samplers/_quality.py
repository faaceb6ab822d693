"""The quality of a plan under given embeddings: mean loss, lift over random batches, and coverage.

Letters: N samples, S batches of a plan, B samples a batch, b anchors evaluated at a time, D dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mbcl.functional import check_choice, clip, nt_xent
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import check_one_width
from mbcl.samplers._normalize import CHUNK_ELEMENTS, unit
from mbcl.seeding import torch_generator

NUM_RANDOM_BATCHES = 512
"""The most random batches of one partition of the data set that a plan is compared with."""
ENOUGH_ANCHORS = 2**14
"""Partitions are drawn until their random batches have this many pairs: the loss of larger batches varies less."""
LOSSES = {"nt_xent": nt_xent, "clip": clip}


def quality(
    plan: BatchPlan,
    embeddings: Embeddings,
    *,
    temperature: float = 0.1,
    seed: int = 0,
    loss: Literal["nt_xent", "clip"] = "nt_xent",
) -> dict[str, float]:
    r"""Return the mean loss of the planned batches, its ratio to that of random batches, and the plan's coverage.

    Rows of any finite length are normalised, also those whose squared length is not representable.

    Args:
        plan: (S, B) batches of the N samples.
        embeddings: of all N samples, rows in any order, on any device.
        temperature: of the loss.
        seed: of the random batches. These are partitions of the data set, as many as make up 512 batches or 2^14
            pairs; if one partition has more than 512 batches, 512 of them. Their choice gives ``lift`` a relative
            error of at most about s / sqrt(n), for n batches and s the standard deviation of a random batch's loss as
            a share of its mean.
        loss: :func:`mbcl.functional.nt_xent` or :func:`mbcl.functional.clip` (the sum of both directions).

    Returns:
        ``loss``: mean loss of the planned batches, nats. ``lift``: that divided by the mean over random batches of
        the same size on the same embeddings; NaN if that mean is 0. ``coverage``: share of the N samples visited.

    Raises:
        PlanError: if the embeddings do not hold each sample once or the plan does not fit them.
        ConfigError: if the loss is unknown, or the embeddings have two widths.

    Example:
        >>> z = torch.eye(4)
        >>> plan = BatchPlan(torch.tensor([[0, 1], [2, 3]]), "example")
        >>> {key: round(value, 6) for key, value in quality(plan, Embeddings(z, z), temperature=1.0).items()}
        {'loss': 0.551445, 'lift': 1.0, 'coverage': 1.0}
    """
    check_choice("loss", loss, tuple(LOSSES))
    check_one_width(embeddings)
    num_samples = len(embeddings)
    plan.validate(num_samples, distinct=False)
    ordered = embeddings.ordered(num_samples)
    batch_size = plan.batches.shape[1]
    planned_loss = _mean_loss(plan.batches, ordered, temperature, loss)
    random_loss = _mean_loss(_random_batches(num_samples, batch_size, seed), ordered, temperature, loss)
    return {
        "loss": planned_loss,
        "lift": planned_loss / random_loss if random_loss > 0 else float("nan"),
        "coverage": plan.coverage(num_samples),
    }


def _random_batches(num_samples: int, batch_size: int, seed: int) -> Tensor:
    """(R, B) positions: as many whole partitions as are needed, or a part of the first if that alone is more."""
    generator = torch_generator(seed, "quality/random")
    batches_a_partition = min(NUM_RANDOM_BATCHES, num_samples // batch_size)
    num_needed = min(NUM_RANDOM_BATCHES, math.ceil(ENOUGH_ANCHORS / batch_size))
    partitions = range(math.ceil(num_needed / batches_a_partition))
    used = batches_a_partition * batch_size
    orders = [torch.randperm(num_samples, generator=generator)[:used] for _ in partitions]
    return torch.cat(orders).view(-1, batch_size)


def _mean_loss(batches_SB: Tensor, embeddings: Embeddings, temperature: float, loss: str) -> float:
    """Mean loss over batches, in chunks of pairs, so that memory grows neither with S nor with the square of B."""
    batch_size = batches_SB.shape[1]
    chunk = max(1, CHUNK_ELEMENTS // (2 * batch_size) ** 2)
    anchors = min(batch_size, max(1, CHUNK_ELEMENTS // (4 * batch_size)))
    total = 0.0
    with torch.no_grad():
        for part_sB in batches_SB.split(chunk):
            rows_sB = part_sB.to(embeddings.z1.device)
            z1_sBD, z2_sBD = unit(embeddings.z1[rows_sB]), unit(embeddings.z2[rows_sB])
            for start in range(0, batch_size, anchors):
                z1_sbD, z2_sbD = (z_sBD[:, start : start + anchors] for z_sBD in (z1_sBD, z2_sBD))
                candidates = {"candidates1": z1_sBD, "candidates2": z2_sBD}
                losses_s = LOSSES[loss](z1_sbD, z2_sbD, temperature=temperature, **candidates, offset=start)
                total += float(losses_s.double().sum())
    return total / len(batches_SB)
