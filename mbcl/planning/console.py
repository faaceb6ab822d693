"""Console output of ``mbcl plan``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mbcl.errors import pluralize
from mbcl.planning.quality import Facts


def table(metrics: Facts) -> None:
    """Print the metrics of a plan, one per line."""
    lines = list(_lines(metrics))
    width = max(len(label) for label, _ in lines)
    sys.stdout.write("".join(f"{label:<{width}}  {value}\n" for label, value in lines))


def _lines(metrics: Facts) -> Iterator[tuple[str, str]]:
    yield "sampler", str(metrics["parameters"])
    yield (
        "batches",
        f"{metrics['batches']} of {metrics['batch_size']}, {metrics['coverage']:.4%} of {metrics['samples']} samples",
    )
    yield "seconds", f"{metrics['seconds']:.3g} of planning"
    if "widths" in metrics:
        yield "loss", f"none, since the sides have {metrics['widths']} dimensions and cannot be compared"
    if "loss" in metrics:
        yield "loss", f"{metrics['loss']:.4g} (NT-Xent at temperature {metrics['temperature']:g})"
        yield "lift", f"{metrics['lift']:.4g} times random batches"
        yield "bound", _bound(metrics)
        yield "CLIP loss", f"{metrics['clip_loss']:.4g}, {metrics['clip_lift']:.4g} times random batches"
    if "overlap" in metrics:
        share = f"{metrics['overlap']:.3g} of the pairs; random plans {metrics['overlap_of_random']:.3g}"
        yield "overlap", f"{share}; the other plan visits {metrics['coverage_of_other']:.4%}"
    if "same_class" in metrics:
        yield (
            "same class",
            f"{metrics['same_class']:.3g} of the pairs; random batches {metrics['same_class_of_random']:.3g}",
        )
    if "conflicts" in metrics:
        yield "conflicts", _conflicts(metrics)
    if metrics["same_when_planned_again"]:
        yield "check", "planned again, the same plan"
    yield "digest", str(metrics["digest"])
    yield "plan", str(metrics["plan"])


def _conflicts(metrics: Facts) -> str:
    batches, batch_size, conflicts = (int(metrics[key] or 0) for key in ("batches", "batch_size", "conflicts"))
    pairs = batches * batch_size * (batch_size - 1)
    share = f", {100 * conflicts / pairs:.3g}% of the {pairs} pairs that share a batch" if pairs else ""
    return (
        f"{pluralize(conflicts, 'pair')} of a sample and one that is no negative of it could not be kept apart{share}"
    )


def _bound(metrics: Facts) -> str:
    limit = "no plan that visits the same samples as often, B at a time, can exceed"
    share, error = f"loss is {metrics['loss_of_bound']:.1%} of {metrics['bound']:.4g}", metrics["bound_standard_error"]
    if not error:
        return f"{share}, which {limit}"
    return f"{share} ± {error:.2g}, an estimate from {metrics['bound_anchors']} anchors of what {limit}"
