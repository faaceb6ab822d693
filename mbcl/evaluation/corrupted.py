"""Retrieval under corruption, in both meanings: within an image's corruptions, and among clean images.

Letters: N images, M corruptions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from mbcl.data import ImageSet, corrupt, load_corrupted
from mbcl.engine.evaluation_checks import images_of
from mbcl.evaluation.measures import Measured
from mbcl.evaluation.subject import Subject
from mbcl.metrics import both_directions, retrieval, retrieval_within
from mbcl.seeding import derive


def measure(subject: Subject, severity: int, corruptions: Sequence[str]) -> Measured:
    """Measure both meanings of corrupted retrieval, at one severity.

    ``corrupted/within/SEVERITY/{u2v,v2u}/top1``, as published: for each image, view 1 of a corruption must retrieve
    view 2 of the same corruption among the image's own corrupted versions; the mean over images. Views are augmented,
    drawn independently for each corruption, and the same for all severities. ``corrupted/within/SEVERITY/top1`` is the
    mean of both directions.

    ``corrupted/clean/{CORRUPTION,mean}/SEVERITY/top1``: a corrupted image must retrieve its original among the
    originals of all images. No augmentation; ``mean`` is over the corruptions.
    """
    meanings = subject.settings.corrupted.meanings
    sources = {corruption: _source(subject, corruption, severity) for corruption in corruptions}
    within: list[list[dict[str, float]]] = []
    clean: dict[str, list[Tensor]] = {corruption: [] for corruption in corruptions}
    # Images in batches: the projections of all their corruptions and draws would not fit into memory.
    batches = subject.batches(subject.images)
    for positions in batches:
        corrupted = {corruption: source(positions) for corruption, source in sources.items()}
        if "within" in meanings:
            within.append(_within(subject, corrupted, positions))
        if "clean" in meanings:
            for corruption, images in corrupted.items():
                clean[corruption].append(subject.clean(subject.projections, images, [positions]))
    metrics: dict[str, float | Sequence[float]] = {}
    if "clean" in meanings:
        originals = subject.projected(subject.features)
        top1 = {name: _top1_clean(subject, torch.cat(queries), originals) for name, queries in clean.items()}
        metrics |= {f"corrupted/clean/{name}/{severity}/top1": value for name, value in top1.items()}
        metrics[f"corrupted/clean/mean/{severity}/top1"] = fmean(top1.values())
    if within:
        sizes = [len(positions) for positions in batches]
        for key in within[0][0]:
            by_draw = [fmean([part[key] for part in parts], sizes) for parts in zip(*within, strict=True)]
            metrics[f"corrupted/within/{severity}/{key}"] = by_draw
    return metrics


def _within(subject: Subject, corrupted: Mapping[str, ImageSet], positions: Tensor) -> list[dict[str, float]]:
    """Measure retrieval within the corruptions of each image at the positions, for each draw of the views."""
    draws, by_corruption = subject.settings.draws, []
    for corruption, images in corrupted.items():
        key = subject.views_key(f"corrupted views of {corruption}", draws)
        by_corruption.append(subject.pairs(subject.projections, images, key, draws, [positions]))
    found = []
    for pairs in zip(*by_corruption, strict=True):
        u_NMD, v_NMD = (torch.stack(views, dim=1) for views in zip(*pairs, strict=True))
        metrics = retrieval_within(u_NMD, v_NMD, similarity=subject.settings.similarity)
        found.append(both_directions(metrics) | metrics)
    return found


def _top1_clean(subject: Subject, queries: Tensor, originals: Tensor) -> float:
    """Return how often a corrupted image retrieves its original first."""
    metrics = retrieval(queries, originals, ks=(1,), similarity=subject.settings.similarity, directions=("u2v",))
    return metrics["u2v/top1"]


def _source(subject: Subject, corruption: str, severity: int) -> Callable[[Tensor], ImageSet]:
    """Return a function of positions to a set with the corrupted images at these positions.

    They are official files, or generated alike for all settings of a seed, in batches.
    """
    images, data, official = (
        images_of(subject.images, "metrics: corrupted"),
        subject.data,
        subject.settings.corrupted.dir,
    )
    if official is not None:
        loaded = load_corrupted(
            data.name, dir=official, corruption=corruption, severity=severity, clean=images, verify=data.verify
        )
        return lambda positions: loaded
    seed = derive(subject.seed, f"{subject.settings.split} corruptions")

    def generate(positions: Tensor) -> ImageSet:
        pixels = images.pixels(positions)
        pixels = corrupt(pixels, corruption=corruption, severity=severity, seed=seed, positions=positions)
        rows = torch.zeros(len(images), dtype=torch.int64)
        rows[positions] = torch.arange(len(positions))
        return replace(images, images=pixels, rows=rows)

    return generate
