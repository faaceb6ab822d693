"""What ``mbcl plan`` shows of a plan."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mbcl.planning.quality import Facts


def table(facts: Facts) -> None:
    """Print what is known about a plan, one line a fact."""
    lines = list(_lines(facts))
    width = max(len(words) for words, _ in lines)
    sys.stdout.write("".join(f"{words:<{width}}  {value}\n" for words, value in lines))


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "sampler", str(facts["parameters"])
    yield (
        "batches",
        f"{facts['batches']} of {facts['batch_size']}, {facts['coverage']:.4%} of {facts['samples']} samples",
    )
    yield "seconds", f"{facts['seconds']:.3g} of planning"
    if "loss" in facts:
        yield "loss", f"{facts['loss']:.4g} (NT-Xent at temperature {facts['temperature']:g})"
        yield "lift", f"{facts['lift']:.4g} times random batches"
        yield "bound", _bound(facts)
        yield "CLIP loss", f"{facts['clip_loss']:.4g}, {facts['clip_lift']:.4g} times random batches"
    if "overlap" in facts:
        words = f"{facts['overlap']:.3g} of the pairs; random plans {facts['overlap_of_random']:.3g}"
        yield "overlap", f"{words}; the other plan visits {facts['coverage_of_other']:.4%}"
    if "same_class" in facts:
        yield (
            "same class",
            f"{facts['same_class']:.3g} of the pairs; random batches {facts['same_class_of_random']:.3g}",
        )
    if "conflicts" in facts:
        yield "conflicts", _conflicts(facts)
    if facts["same_when_planned_again"]:
        yield "check", "planned again, the same plan"
    yield "digest", str(facts["digest"])
    yield "plan", str(facts["plan"])


def _conflicts(facts: Facts) -> str:
    batches, batch_size, conflicts = (int(facts[key] or 0) for key in ("batches", "batch_size", "conflicts"))
    pairs = batches * batch_size * (batch_size - 1)
    share = f", {conflicts / pairs:.3g} of all pairs that share a batch" if pairs else ""
    return f"{conflicts} pairs of a sample and one of its nearest could not be kept apart{share}"


def _bound(facts: Facts) -> str:
    limit = "which no plan that visits the same samples as often, B at a time, can exceed"
    share = f"loss is {facts['loss_of_bound']:.1%} of {facts['bound']:.4g}, {limit}"
    if not facts["bound_standard_error"]:
        return share
    return f"{share} (± {facts['bound_standard_error']:.2g}, from {facts['bound_anchors']} anchors)"
