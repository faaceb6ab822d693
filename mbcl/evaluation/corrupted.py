"""Retrieval under corruption, in both meanings: within an image's corruptions, and among clean images.

Letters: N images, M corruptions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from mbcl.data import ImageSet, corrupt, load_corrupted
from mbcl.evaluation.subject import Subject
from mbcl.metrics import retrieval, retrieval_within
from mbcl.seeding import derive

_BLOCK = 1024
"""Number of images whose views are compared at once."""


def measure(subject: Subject, severity: int, corruptions: Sequence[str]) -> dict[str, float]:
    """Measure both meanings of corrupted retrieval, at one severity.

    ``corrupted/within/SEVERITY/{u2v,v2u}/top1``, as published: for each image, view 1 of a corruption must retrieve
    view 2 of the same corruption among the image's own corrupted versions; the mean over images. Views are augmented,
    drawn independently for each corruption, and the same for all severities.

    ``corrupted/clean/{CORRUPTION,mean}/SEVERITY/top1``: a corrupted image must retrieve its original among the
    originals of all images. No augmentation; ``mean`` is over the corruptions.
    """
    meanings, clean_top1 = subject.settings.corrupted.meanings, {}
    originals = subject.projected(subject.features) if "clean" in meanings else None
    view_pairs: list[tuple[Tensor, Tensor]] = []
    for corruption in corruptions:
        images = _corrupted(subject, corruption, severity)
        if "within" in meanings:
            key = subject.views_key(f"corrupted views of {corruption}")
            view_pairs.append(subject.pairs(subject.projections, images, key))
        if originals is not None:
            clean_top1[corruption] = _top1_clean(subject, images, originals)
    metrics = {f"corrupted/clean/{corruption}/{severity}/top1": value for corruption, value in clean_top1.items()}
    if view_pairs:
        metrics |= _within(subject, view_pairs, severity)
    if clean_top1:
        metrics[f"corrupted/clean/mean/{severity}/top1"] = fmean(clean_top1.values())
    return metrics


def _within(subject: Subject, pairs: Sequence[tuple[Tensor, Tensor]], severity: int) -> dict[str, float]:
    """Measure retrieval within each image's corruptions, in blocks of images to avoid a second copy of all views."""
    parts, sizes = [], []
    for block in torch.arange(len(subject.images)).split(_BLOCK):
        u_NMD, v_NMD = (torch.stack([each[block] for each in views], dim=1) for views in zip(*pairs, strict=True))
        parts.append(retrieval_within(u_NMD, v_NMD, similarity=subject.settings.similarity))
        sizes.append(len(block))
    return {f"corrupted/within/{severity}/{key}": fmean([part[key] for part in parts], sizes) for key in parts[0]}


def _top1_clean(subject: Subject, images: ImageSet, originals: Tensor) -> float:
    """Return how often a corrupted image retrieves its original first."""
    queries = subject.clean(subject.projections, images)
    metrics = retrieval(queries, originals, ks=(1,), similarity=subject.settings.similarity, directions=("u2v",))
    return metrics["u2v/top1"]


def _corrupted(subject: Subject, corruption: str, severity: int) -> ImageSet:
    """Return the split's images under a corruption: official files, or generated alike for all settings of a seed."""
    images, data, official = subject.images, subject.data, subject.settings.corrupted.dir
    if official is not None:
        return load_corrupted(
            data.name, dir=official, corruption=corruption, severity=severity, clean=images, verify=data.verify
        )
    positions = torch.arange(len(images))
    seed = derive(subject.seed, f"{subject.settings.split} corruptions")
    pixels = corrupt(images.pixels(positions), corruption=corruption, severity=severity, seed=seed, positions=positions)
    return replace(images, images=pixels, rows=None)
