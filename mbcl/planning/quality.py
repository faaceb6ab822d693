"""Metrics of one batch plan."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import overlap, quality, same_class_share, upper_bound

Facts = dict[str, str | int | float | bool | None]


def measure(
    plan: BatchPlan,
    *,
    num_samples: int,
    embeddings: Embeddings | None,
    labels: Tensor | None,
    other: BatchPlan | None,
    temperature: float,
    seed: int,
    stage: Callable[[str], None],
) -> Facts:
    """Compute the metrics that ``mbcl plan`` prints, by name, of a plan of N samples.

    Without ``embeddings`` of all samples, or with sides of two widths, the losses are skipped; without ``labels``, (N,)
    int64, the share of pairs with equal classes; without an ``other`` plan, the overlap. ``seed`` is that of the random
    batches and of the sampled anchors. ``stage`` is called with the name of each stage, before it starts.
    """
    metrics: Facts = {
        "samples": num_samples,
        "batches": len(plan),
        "batch_size": plan.batches.shape[1],
        "coverage": plan.coverage(num_samples),
    }
    if embeddings is not None and len(set(embeddings.widths)) == 2:
        metrics["widths"] = " and ".join(map(str, embeddings.widths))
    elif embeddings is not None:
        stage("measuring losses")
        losses = quality(plan, embeddings, temperature=temperature, seed=seed)
        clip_losses = quality(plan, embeddings, temperature=temperature, seed=seed, loss="clip")
        stage("bounding the loss")
        bound = upper_bound(plan, embeddings, temperature=temperature, seed=seed)
        metrics |= {
            "temperature": temperature,
            "loss": losses["loss"],
            "lift": losses["lift"],
            "bound": bound.value,
            "bound_anchors": bound.num_anchors,
            "bound_standard_error": bound.standard_error,
            "loss_of_bound": losses["loss"] / bound.value if bound.value > 0 else float("nan"),
            "clip_loss": clip_losses["loss"],
            "clip_lift": clip_losses["lift"],
        }
    if other is not None:
        stage("comparing plans")
        pair_overlap = overlap(plan, other, num_samples)
        metrics |= {
            "overlap": pair_overlap.value,
            "overlap_of_random": pair_overlap.expected,
            "coverage_of_other": other.coverage(num_samples),
        }
    if labels is not None:
        class_share = same_class_share(plan, labels)
        metrics |= {"same_class": class_share.value, "same_class_of_random": class_share.expected}
    if plan.conflicts is not None:
        metrics["conflicts"] = plan.conflicts
    metrics["digest"] = plan.digest
    return metrics
