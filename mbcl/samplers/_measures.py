"""Measures of a plan: an upper bound of its loss, its overlap with another plan, and its share of same-class pairs.

Letters: N samples, S batches of a plan, B samples a batch, n samples whose anchors are evaluated, a of them at a time,
A = 2a anchors, C candidates at a time, D dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mbcl.errors import PlanError
from mbcl.functional import check_temperature
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import check_one_width
from mbcl.samplers._normalize import CHUNK_ELEMENTS, unit
from mbcl.seeding import torch_generator

ANCHORS = 512
"""Samples whose anchors are compared with a block of candidates at once."""
EXACT_PAIRS = 2**24
"""Up to this many pairs of samples, all anchors are evaluated: 4,096 samples, a second of one core."""
SAMPLED_PAIRS = 2**26
MIN_SAMPLES = 256


class Bound(NamedTuple):
    """A mean over anchors.

    Args:
        value: the mean, nats.
        num_anchors: the number of anchors evaluated.
        standard_error: of ``value``, from the sampling of anchors; 0 if all were evaluated.
    """

    value: float
    num_anchors: int
    standard_error: float


class Share(NamedTuple):
    """A share of pairs, in [0, 1].

    Args:
        value: of the plan; NaN if no two samples share a batch.
        expected: the mean of the same share over random batches.
    """

    value: float
    expected: float


@torch.no_grad()
def upper_bound(plan: BatchPlan, embeddings: Embeddings, *, temperature: float = 0.1, seed: int = 0) -> Bound:
    r"""An upper bound of the mean NT-Xent of every plan with the same batch size and the same visits of each sample.

    With S the similarities over the temperature of the normalised views, anchor a of sample i and p its other view:

    .. math:: \ell_a = \log\Big(e^{S_{ap}} + \max_{J}\sum_{j\in J} \big(e^{S_{a j_1}} + e^{S_{a j_2}}\big)\Big) - S_{ap}

    with J any B - 1 other samples of the data set: the B - 1 that raise the denominator most.

    Proof: in any batch of B, the loss of anchor a is the same expression with J the B - 1 others of the batch, and the
    logarithm grows with the sum; so it is at most :math:`\ell_a`. The loss of a plan is the mean over the anchors of
    all its places, hence at most the mean of :math:`\ell_a` over them, however samples are combined to batches. For a
    partition of the data set that is the mean over all 2N anchors, the same for every partition.

    The bound is seldom reached, because being among each other's hardest samples is not symmetric.

    All places of the plan are evaluated where they make at most 2^24 pairs with the N samples; otherwise 2^26 / N
    places, and at least 256, drawn without repetition. The value is then an estimate of the bound, below it about as
    often as above. Both anchors of a place are evaluated.

    Args:
        plan: (S, B) batches; only B and the number of visits of each sample matter.
        embeddings: of all N samples, rows in any order, on any device.
        temperature: dimensionless, above 0.
        seed: of the sample of places, where not all are evaluated.

    Raises:
        PlanError: if the embeddings do not hold each sample once or the plan does not fit them.
        ConfigError: if the temperature is not a finite number above 0, or the embeddings have two widths.

    Example:
        >>> plan = BatchPlan(torch.tensor([[0, 1], [2, 3]]), "example")
        >>> z = torch.eye(4)[[0, 1, 0, 1]]  # partitions reach log(1 + 2/e) = 0.5514 and log(3) = 1.0986
        >>> round(upper_bound(plan, Embeddings(z, z), temperature=1.0).value, 4)
        1.0986
    """
    check_temperature(temperature)
    check_one_width(embeddings)
    plan.validate(len(embeddings), distinct=False)
    ordered = embeddings.ordered(len(embeddings))
    places = plan.batches.flatten()
    num_samples = len(places)
    if num_samples * len(embeddings) > EXACT_PAIRS:
        num_samples = min(num_samples, max(MIN_SAMPLES, SAMPLED_PAIRS // len(embeddings)))
    if num_samples < len(places):
        order = torch.randperm(len(places), generator=torch_generator(seed, "quality/bound"))
        places = places[order[:num_samples]]
    num_others = plan.batches.shape[1] - 1
    bound_n = torch.cat([_bounds(part, ordered, temperature, num_others) for part in places.split(ANCHORS)])
    spread = float(bound_n.std()) if num_samples > 1 else float("nan")
    unseen = 1 - num_samples / plan.batches.numel()
    error = spread * (unseen / num_samples) ** 0.5 if unseen else 0.0
    return Bound(float(bound_n.mean()), 2 * num_samples, error)


def _bounds(rows_a: Tensor, embeddings: Embeddings, temperature: float, num_others: int) -> Tensor:
    """(a,) float64 on the CPU: for each sample, the mean of the bounds of its two anchors."""
    rows_a = rows_a.to(embeddings.z1.device)
    u_aD, v_aD = unit(embeddings.z1[rows_a]), unit(embeddings.z2[rows_a])
    anchor_AD = torch.cat([u_aD, v_aD]) / temperature
    sample_A1 = rows_a.repeat(2)[:, None]
    pos_A = (u_aD * v_aD).sum(dim=1).repeat(2) / temperature
    log_sum_AK = anchor_AD.new_empty(len(anchor_AD), 0)
    step = max(1, CHUNK_ELEMENTS // len(anchor_AD))
    for start in range(0, len(embeddings), step):
        s1_AC = anchor_AD @ unit(embeddings.z1[start : start + step]).T
        s2_AC = anchor_AD @ unit(embeddings.z2[start : start + step]).T
        own_A1 = sample_A1 - start
        in_block = ((own_A1 >= 0) & (own_A1 < s1_AC.shape[1])).squeeze(1)
        for s_AC in (s1_AC, s2_AC):
            s_AC[in_block.nonzero().squeeze(1), own_A1[in_block, 0]] = -torch.inf
        # Relative to the row's largest, so that nothing overflows; what underflows is 10^38 times smaller than it.
        # Cosines are at least -1, so the clamp only affects a row of -inf: a sample that is alone in its block.
        top_A1 = torch.maximum(s1_AC.amax(dim=1), s2_AC.amax(dim=1)).clamp(min=-2 / temperature)[:, None]
        sum_AC = s1_AC.sub_(top_A1).exp_().add_(s2_AC.sub_(top_A1).exp_())
        best_AK = sum_AC.topk(min(num_others, sum_AC.shape[1]), dim=1).values.log() + top_A1
        log_sum_AK = torch.cat([log_sum_AK, best_AK], dim=1)
        log_sum_AK = log_sum_AK.topk(min(num_others, log_sum_AK.shape[1]), dim=1).values
    x_A = log_sum_AK.logsumexp(dim=1) - pos_A
    return torch.logaddexp(x_A, torch.zeros_like(x_A)).double().view(2, -1).mean(dim=0).cpu()


def overlap(plan: BatchPlan, other: BatchPlan, num_samples: int) -> Share:
    """Return the share of the pairs within batches of ``plan`` that also share a batch of ``other``.

    Args:
        plan: (S, B) batches of the N samples.
        other: (S', B'), of the same samples.
        num_samples: N.

    Returns:
        The share, and its mean if the samples of ``other`` were drawn at random, which is the share of all pairs of
        samples that ``other`` puts in one batch.

    Raises:
        PlanError: if a plan does not fit the samples.

    Example:
        >>> first, second = (BatchPlan(torch.tensor(rows), "") for rows in ([[0, 1, 2]], [[1, 2], [3, 0]]))
        >>> overlap(first, second, 4)
        Share(value=0.3333333333333333, expected=0.3333333333333333)
    """
    for each in (plan, other):
        each.validate(num_samples, distinct=False)
    if all(len(torch.unique(each.batches)) == each.batches.numel() for each in (plan, other)):
        # A sample that the other plan does not visit gets a negative batch number of its own, which matches no other.
        batch_N = -1 - torch.arange(num_samples)
        batch_N[other.batches] = torch.arange(len(other))[:, None]
        num_both = equal_pairs(batch_N[plan.batches])
        num_plan, num_other = (each.batches.numel() * (each.batches.shape[1] - 1) // 2 for each in (plan, other))
    else:
        pairs, other_pairs = _pairs(plan, num_samples), _pairs(other, num_samples)
        num_both = int(torch.isin(pairs, other_pairs, assume_unique=True).sum())
        num_plan, num_other = len(pairs), len(other_pairs)
    return Share(_ratio(num_both, num_plan), _ratio(num_other, num_samples * (num_samples - 1) // 2))


def same_class_share(plan: BatchPlan, labels: Tensor) -> Share:
    """Return the share of pairs within batches whose samples have the same class: false negatives, if classes matter.

    Args:
        plan: (S, B) batches of the N samples.
        labels: (N,) integer, the class of each sample.

    Returns:
        The share, and the share among all pairs of samples, which is the mean over random batches.

    Raises:
        PlanError: if labels are not one integer for each sample or the plan does not fit them.

    Example:
        >>> same_class_share(BatchPlan(torch.tensor([[0, 1], [2, 3]]), ""), torch.tensor([0, 0, 1, 1]))
        Share(value=1.0, expected=0.3333333333333333)
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise PlanError(f"labels must be one integer for each sample, found {tuple(labels.shape)} {labels.dtype}")
    plan.validate(len(labels), distinct=False)
    labels = labels.cpu()
    num_pairs = plan.batches.numel() * (plan.batches.shape[1] - 1) // 2
    return Share(
        _ratio(equal_pairs(labels[plan.batches]), num_pairs),
        _ratio(equal_pairs(labels[None]), len(labels) * (len(labels) - 1) // 2),
    )


def equal_pairs(x_SB: Tensor) -> int:
    """Return the number of pairs of equal entries within rows, (S, B), summed over all rows."""
    x_SB = x_SB.sort(dim=1).values
    place_B = torch.arange(x_SB.shape[1])
    first_SB = torch.cat([torch.ones(len(x_SB), 1, dtype=torch.bool), x_SB[:, 1:] != x_SB[:, :-1]], dim=1)
    # The entry at place r of a run of equal ones makes r pairs with those before it.
    start_SB = torch.where(first_SB, place_B, 0).cummax(dim=1).values
    return int((place_B - start_SB).sum())


def _pairs(plan: BatchPlan, num_samples: int) -> Tensor:
    """The numbers i * N + j of the pairs i < j that share a batch, ascending and without repetition."""
    rows_SB = plan.batches.sort(dim=1).values
    i, j = torch.triu_indices(rows_SB.shape[1], rows_SB.shape[1], offset=1)
    pairs: Tensor = torch.unique(rows_SB[:, i] * num_samples + rows_SB[:, j])
    return pairs


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
