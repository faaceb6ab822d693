"""All that is measured of one plan, as plain numbers under plain names."""

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
    """The numbers that ``mbcl plan`` prints.

    Args:
        plan: of the N samples.
        num_samples: N.
        embeddings: of all samples, or None: then nothing is said about losses.
        labels: (N,) int64, or None.
        other: a plan to compare with, or None.
        temperature: of the losses.
        seed: of the random batches and of the anchors that are looked at.
        stage: told what is measured next.
    """
    facts: Facts = {
        "samples": num_samples,
        "batches": len(plan),
        "batch_size": plan.batches.shape[1],
        "coverage": plan.coverage(num_samples),
    }
    if embeddings is not None:
        stage("measuring losses")
        found = quality(plan, embeddings, temperature=temperature, seed=seed)
        clip = quality(plan, embeddings, temperature=temperature, seed=seed, loss="clip")
        stage("bounding the loss")
        bound = upper_bound(plan, embeddings, temperature=temperature, seed=seed)
        facts |= {
            "temperature": temperature,
            "loss": found["loss"],
            "lift": found["lift"],
            "bound": bound.value,
            "bound_anchors": bound.num_anchors,
            "bound_standard_error": bound.standard_error,
            "loss_of_bound": found["loss"] / bound.value if bound.value > 0 else float("nan"),
            "clip_loss": clip["loss"],
            "clip_lift": clip["lift"],
        }
    if other is not None:
        stage("comparing plans")
        shared = overlap(plan, other, num_samples)
        facts |= {
            "overlap": shared.value,
            "overlap_of_random": shared.expected,
            "coverage_of_other": other.coverage(num_samples),
        }
    if labels is not None:
        same = same_class_share(plan, labels)
        facts |= {"same_class": same.value, "same_class_of_random": same.expected}
    if plan.conflicts is not None:
        facts["conflicts"] = plan.conflicts
    facts["digest"] = plan.digest
    return facts
