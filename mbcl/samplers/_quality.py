"""How good a plan is, under given embeddings.

Letters: N samples, S batches of a plan, B samples a batch, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.functional import nt_xent
from mbcl.plan import BatchPlan, Embeddings
from mbcl.seeding import torch_generator

CHUNK_ELEMENTS = 2**22
NUM_RANDOM_BATCHES = 512


def quality(plan: BatchPlan, embeddings: Embeddings, *, temperature: float = 0.1, seed: int = 0) -> dict[str, float]:
    r"""The mean NT-Xent of the planned batches, and how far it lies above that of random ones.

    Args:
        plan: (S, B) batches of the N samples.
        embeddings: of all N samples, rows in any order, on any device.
        temperature: of the loss.
        seed: of the random batches: a partition of the data set, of which at most 512 batches are taken. The relative
            error of ``lift`` from that choice is about the spread of a random batch's loss divided by sqrt(512).

    Returns:
        ``loss``: mean NT-Xent of the planned batches, nats. ``lift``: that divided by the mean over random batches of
        the same size on the same embeddings; NaN if that mean is 0. ``coverage``: share of the N samples visited.

    Raises:
        PlanError: if the embeddings do not hold each sample once or the plan does not fit them.

    Example:
        >>> z = torch.eye(4)
        >>> plan = BatchPlan(torch.tensor([[0, 1], [2, 3]]), "example")
        >>> {key: round(value, 6) for key, value in quality(plan, Embeddings(z, z), temperature=1.0).items()}
        {'loss': 0.551445, 'lift': 1.0, 'coverage': 1.0}
    """
    num_samples = len(embeddings)
    plan.validate(num_samples, distinct=False)
    ordered = embeddings.ordered(num_samples)
    batch_size = plan.batches.shape[1]
    order = torch.randperm(num_samples, generator=torch_generator(seed, "quality/random"))
    num_random = min(NUM_RANDOM_BATCHES, num_samples // batch_size)
    random_batches = order[: num_random * batch_size].view(num_random, batch_size)
    loss = _mean_loss(plan.batches, ordered, temperature)
    random_loss = _mean_loss(random_batches, ordered, temperature)
    return {
        "loss": loss,
        "lift": loss / random_loss if random_loss > 0 else float("nan"),
        "coverage": plan.coverage(num_samples),
    }


def _mean_loss(batches_SB: Tensor, embeddings: Embeddings, temperature: float) -> float:
    """Mean NT-Xent over batches, so many at a time that memory does not grow with S."""
    batch_size = batches_SB.shape[1]
    total = 0.0
    with torch.no_grad():
        for part_sB in batches_SB.split(max(1, CHUNK_ELEMENTS // (2 * batch_size) ** 2)):
            rows_sB = part_sB.to(embeddings.z1.device)
            losses_s = nt_xent(embeddings.z1[rows_sB], embeddings.z2[rows_sB], temperature=temperature)
            total += float(losses_s.double().sum())
    return total / len(batches_SB)
