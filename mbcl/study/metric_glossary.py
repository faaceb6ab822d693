"""Glossary of the metrics: their meaning, the direction that is better, and their order in tables."""

from __future__ import annotations

import re

_ORDER = "retrieval synthetic val knn probe corrupted repr baseline plan train sogclr work time".split()

# Direction (+ higher is better, - lower is better, 0 neither), regular expression of the name, meaning.
# The first pattern that matches counts; {0}, {1} are its groups.
_TABLE = r"""
+ retrieval/mrr: mean of 1/rank at which a view finds the image's other view among those of all test images; mean of
    both directions; 1 is perfect
+ retrieval/top1: share of views of test images to which the image's other view is the most similar of all; mean of
    both directions
+ retrieval/u2v/top(\d+): share of test images whose own second view is among the {0} most similar of all second views
+ retrieval/v2u/top(\d+): the same the other way round: from the second view to the first, among the {0} most similar
+ retrieval/.*/mrr: mean of 1/rank of the right view; 1 is perfect
- retrieval/.*/mean_rank: mean rank of the right view; 1 is perfect
- retrieval/.*/median_rank: median rank of the right view; 1 is perfect
+ val/retrieval/mrr: retrieval/mrr on the validation split, measured during training; search and schedulers see
    the validation split alone
+ val/retrieval/top1: retrieval/top1 on the validation split, measured during training
+ val/knn/top1: knn/top1 on the validation split, measured during training with evaluation.validation_metrics
+ val/probe/top1: probe/top1 on the validation split, measured during training with evaluation.validation_metrics
+ corrupted/within/(\d)/top1: whether the corruptions of an image are told apart, severity {0}; mean of both directions
+ corrupted/within/(\d)/u2v/top1: share of the corrupted versions of an image, severity {0}, whose second view is
    nearest of all versions' of that image: whether corruptions are told apart, as published
+ corrupted/within/(\d)/v2u/top1: the same the other way round, severity {0}
+ corrupted/clean/mean/(\d)/top1: share of corrupted images, severity {0}, whose own original is nearest of all; mean
    over the corruptions
+ corrupted/clean/(.*)/(\d)/top1: the same for {0} alone, severity {1}
+ knn/top1: accuracy of a vote of the nearest training images, on the frozen features
+ probe/top1: accuracy of a linear classifier on the frozen features
- repr/alignment: mean squared distance between the two views of an image, on the unit sphere
- repr/uniformity: how evenly the representations fill the unit sphere; lower is more even
+ repr/effective_rank: how many directions the representations really use
0 plan/lift: loss of the planned batches over the mean loss of random batches on the same embeddings; 1 is no harder
    than chance, above 1 is harder
0 plan/loss: mean NT-Xent loss of the planned batches under the embeddings the planner had
- plan/seconds: seconds that computing a batch plan took
- plan/age: epochs since the embeddings that a plan was made from were computed, mean over samples
0 plan/coverage: share of the training samples that a plan contains
0 plan/conflicts: pairs of a sample and another of its batch that `skip`, a margin or `apart` excludes
0 train/loss: mean loss of the trained batches; hard batches raise it, so it does not compare samplers or objectives
0 train/lr: learning rate
- train/skipped_steps: steps of the last epoch whose fp16 gradients were not finite, so that weights stayed
0 train/same_class: share of the pairs within trained batches whose samples have the same class
- sogclr/u_age: epochs since SogCLR's moving average was updated, mean over samples
- synthetic/distance: Frobenius norm of u vᵀ less the known optimum, the least over rotations and namings of the
    samples
- synthetic/excess: loss of all samples as one batch, above the optimum; where none is known, above the least that
    restarts found, which it can be below
- synthetic/true_loss: loss of all samples as one batch
- synthetic/mean_loss: mean loss over all batches of this size, or an estimate without bias
0 synthetic/mean_loss_error: standard error of that estimate; 0 where the mean is exact
- synthetic/rearranging: the published norm: it is blind to wrongly matched positives
0 synthetic/batch_loss: loss of the last batch of a step, before its update
0 synthetic/updates: gradient updates made
0 synthetic/samples: samples seen, once for every batch that a sample was in
0 synthetic/steps: steps; what a step does differs between samplers
0 work/images: images trained on so far, once for every time
0 work/passes: forward passes so far, both views of one image each: one an image that is embedded for a plan, three an
    image that is trained on, whose backward pass counts for two
- time/plan: seconds that the planner computed, whether training waited or not
- time/wait: seconds that training stood still for a plan, transport included
- time/.*: seconds spent in a stage
"""
_ENTRIES = [
    (pattern, {"+": 1, "-": -1, "0": 0}[sign], " ".join(text.split()))
    for sign, pattern, text in re.findall(r"^([+\-0]) (\S+): (.*(?:\n    .*)*)", _TABLE, flags=re.MULTILINE)
]

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
    """Return a sort key: the test split first, then training and planning, time last; mrr, top1, top5, top10, ranks."""
    head, _, tail = metric.partition("/")
    rank = _ORDER.index(head) if head in _ORDER else len(_ORDER)
    tail = tail.replace("clean/mean/", "clean/ mean/")  # a space sorts the mean before the single corruptions
    digits = re.search(r"\d+$", tail)
    stem = tail[: digits.start()] if digits else tail
    parent, _, leaf = stem.rpartition("/")
    kind = {"mrr": "0", "top": "1", "mean_rank": "2", "median_rank": "3"}.get(leaf, "0" + leaf)
    return rank, f"{parent}/{kind}", int(digits.group()) if digits else 0, metric
