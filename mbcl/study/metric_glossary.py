"""Glossary of the metrics: their meaning, the direction that is better, and their order in tables."""

from __future__ import annotations

import re

_ORDER = (
    "retrieval",
    "synthetic",
    "val",
    "knn",
    "probe",
    "corrupted",
    "repr",
    "baseline",
    "plan",
    "train",
    "sogclr",
    "time",
)

_ENTRIES: tuple[tuple[str, int, str], ...] = (
    # (regular expression of the name, direction: +1 higher is better, -1 lower is better, 0 neither, meaning).
    # The first pattern that matches counts; {0}, {1} are its groups.
    (
        r"retrieval/u2v/top(\d+)",
        1,
        "share of test images whose own second view is among the {0} most similar of all second views",
    ),
    (
        r"retrieval/v2u/top(\d+)",
        1,
        "the same the other way round: from the second view to the first, among the {0} most similar",
    ),
    (r"retrieval/.*/mrr", 1, "mean of 1/rank of the right view; 1 is perfect"),
    (r"retrieval/.*/mean_rank", -1, "mean rank of the right view; 1 is perfect"),
    (r"retrieval/.*/median_rank", -1, "median rank of the right view; 1 is perfect"),
    (
        r"val/retrieval/top1",
        1,
        "retrieval top-1 on the validation split, measured during training; search and schedulers see it alone",
    ),
    (
        r"corrupted/within/(\d)/u2v/top1",
        1,
        "share of the corrupted versions of an image, severity {0}, whose second view is nearest of all versions' of "
        "that image: whether corruptions are told apart, as published",
    ),
    (r"corrupted/within/(\d)/v2u/top1", 1, "the same the other way round, severity {0}"),
    (
        r"corrupted/clean/mean/(\d)/top1",
        1,
        "share of corrupted images, severity {0}, whose own original is nearest of all; mean over the corruptions",
    ),
    (r"corrupted/clean/(.*)/(\d)/top1", 1, "the same for {0} alone, severity {1}"),
    (r"knn/top1", 1, "accuracy of a vote of the nearest training images, on the frozen features"),
    (r"probe/top1", 1, "accuracy of a linear classifier on the frozen features"),
    (r"repr/alignment", -1, "mean squared distance between the two views of an image, on the unit sphere"),
    (r"repr/uniformity", -1, "how evenly the representations fill the unit sphere; lower is more even"),
    (r"repr/effective_rank", 1, "how many directions the representations really use"),
    (
        r"plan/lift",
        0,
        "loss of the planned batches over the mean loss of random batches on the same embeddings; "
        "1 is no harder than chance, above 1 is harder",
    ),
    (r"plan/loss", 0, "mean NT-Xent loss of the planned batches under the embeddings the planner had"),
    (r"plan/seconds", -1, "seconds that computing a batch plan took"),
    (r"plan/age", -1, "epochs since the embeddings that a plan was made from were computed, mean over samples"),
    (r"plan/coverage", 0, "share of the training samples that a plan contains"),
    (r"plan/conflicts", 0, "pairs of a sample and one of its `skip` nearest that had to share a batch"),
    (
        r"train/loss",
        0,
        "mean loss of the trained batches; hard batches raise it, so it does not compare samplers or objectives",
    ),
    (r"train/lr", 0, "learning rate"),
    (
        r"train/skipped_steps",
        -1,
        "steps of the last epoch whose fp16 gradients were not finite, so that weights stayed",
    ),
    (r"sogclr/u_age", -1, "epochs since SogCLR's moving average was updated, mean over samples"),
    (
        r"synthetic/distance",
        -1,
        "Frobenius norm of u vᵀ less the known optimum, the least over rotations and namings of the samples",
    ),
    (
        r"synthetic/excess",
        -1,
        "loss of all samples as one batch, above the optimum; where none is known, above the least that restarts "
        "found, which it can be below",
    ),
    (r"synthetic/true_loss", -1, "loss of all samples as one batch"),
    (r"synthetic/mean_loss", -1, "mean loss over all batches of this size, or an estimate without bias"),
    (r"synthetic/mean_loss_error", 0, "standard error of that estimate; 0 where the mean is exact"),
    (r"synthetic/rearranging", -1, "the published norm: it is blind to wrongly matched positives"),
    (r"synthetic/batch_loss", 0, "loss of the last batch of a step, before its update"),
    (r"synthetic/updates", 0, "gradient updates made"),
    (r"synthetic/samples", 0, "samples seen, once for every batch that a sample was in"),
    (r"synthetic/steps", 0, "steps; what a step does differs between samplers"),
    (r"time/plan", -1, "seconds that the planner computed, whether training waited or not"),
    (r"time/wait", -1, "seconds that training stood still for a plan, transport included"),
    (r"time/.*", -1, "seconds spent in a stage"),
)


_BASELINES = {"random": "the untrained encoder", "pixels": "raw pixels"}


def _split_baseline(metric: str) -> tuple[str, str]:
    """Split ``baseline/KIND/METRIC`` into a baseline's description, empty for the trained encoder, and the metric."""
    head, _, tail = metric.partition("/")
    kind, _, inner = tail.partition("/")
    return (_BASELINES[kind], inner) if head == "baseline" and kind in _BASELINES else ("", metric)


def direction(metric: str) -> int:
    """Return 1 if higher is better, -1 if lower is better, 0 if neither."""
    _, metric = _split_baseline(metric)
    return next((sign for pattern, sign, _ in _ENTRIES if re.fullmatch(pattern, metric)), 0)


def meaning(metric: str) -> str:
    """Return one line that explains a metric; empty for an unknown metric."""
    owner, inner = _split_baseline(metric)
    if owner:
        return f"{inner} of {owner}, in the same evaluation" if meaning(inner) else ""
    for pattern, _, text in _ENTRIES:
        if match := re.fullmatch(pattern, metric):
            return text.format(*match.groups())
    return ""


def metric_order(metric: str) -> tuple[int, str, int, str]:
    """Return a sort key: the test split first, then training and planning, time last; top5 before top10."""
    head, _, tail = metric.partition("/")
    rank = _ORDER.index(head) if head in _ORDER else len(_ORDER)
    tail = tail.replace("clean/mean/", "clean/ mean/")  # a space sorts the mean before the single corruptions
    digits = re.search(r"\d+$", tail)
    stem = tail[: digits.start()] if digits else tail
    parent, _, leaf = stem.rpartition("/")
    kind = {"top": "0", "mrr": "1", "mean_rank": "2", "median_rank": "3"}.get(leaf, "0" + leaf)
    return rank, f"{parent}/{kind}", int(digits.group()) if digits else 0, metric
