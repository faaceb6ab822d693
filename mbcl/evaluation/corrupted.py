"""Retrieval under corruption, in both meanings.

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


def measure(subject: Subject, severity: int, corruptions: Sequence[str]) -> dict[str, float]:
    """Both meanings of corrupted retrieval, at one severity.

    ``corrupted/within/SEVERITY/{u2v,v2u}/top1``, as published: one image at a time, among its own corrupted versions,
    view 1 of a corruption must find view 2 of the same corruption; the mean over images. Augmented views, each
    corruption's drawn by itself, the same for all severities.

    ``corrupted/clean/{CORRUPTION,mean}/SEVERITY/top1``: a corrupted image must find its original among the originals
    of all images. No augmentation; ``mean`` is over the corruptions.
    """
    meanings, each = subject.settings.corrupted.meanings, {}
    originals = subject.projected(subject.features) if "clean" in meanings else None
    views: list[tuple[Tensor, Tensor]] = []
    for corruption in corruptions:
        images = _corrupted(subject, corruption, severity)
        if "within" in meanings:
            views.append(subject.projection_pairs(images, subject.views_key(f"corrupted views of {corruption}")))
        if originals is not None:
            each[corruption] = _found(subject, images, originals)
    found = {f"corrupted/clean/{corruption}/{severity}/top1": value for corruption, value in each.items()}
    if views:
        found |= _within(subject, views, severity)
    if each:
        found[f"corrupted/clean/mean/{severity}/top1"] = fmean(each.values())
    return found


def _within(subject: Subject, pairs: Sequence[tuple[Tensor, Tensor]], severity: int) -> dict[str, float]:
    """In blocks of images, so that all views lie in memory once."""
    parts, sizes = [], []
    for block in torch.arange(len(subject.images)).split(_BLOCK):
        u_NMD, v_NMD = (torch.stack([each[block] for each in views], dim=1) for views in zip(*pairs, strict=True))
        parts.append(retrieval_within(u_NMD, v_NMD, similarity=subject.settings.similarity))
        sizes.append(len(block))
    return {f"corrupted/within/{severity}/{key}": fmean([part[key] for part in parts], sizes) for key in parts[0]}


def _found(subject: Subject, images: ImageSet, originals: Tensor) -> float:
    queries = subject.projections(images)
    each = retrieval(queries, originals, ks=(1,), similarity=subject.settings.similarity, directions=("u2v",))
    return each["u2v/top1"]


def _corrupted(subject: Subject, corruption: str, severity: int) -> ImageSet:
    """The split's images under a corruption: the official ones, or made here, alike for every setting of one seed."""
    images, data, official = subject.images, subject.data, subject.settings.corrupted.dir
    if official is not None:
        return load_corrupted(
            data.name, dir=official, corruption=corruption, severity=severity, clean=images, verify=data.verify
        )
    positions = torch.arange(len(images))
    pixels = corrupt(
        images.pixels(positions),
        corruption=corruption,
        severity=severity,
        seed=derive(subject.seed, f"{subject.settings.split} corruptions"),
        positions=positions,
    )
    return replace(images, images=pixels, rows=None)
