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
from mbcl.engine.evaluable import corruptions_of
from mbcl.evaluation.subject import Subject
from mbcl.metrics import retrieval, retrieval_within
from mbcl.seeding import derive


def measure(subject: Subject) -> dict[str, float]:
    """Both meanings of corrupted retrieval, by severity.

    ``corrupted/within/SEVERITY/{u2v,v2u}/top1``, as published: one image at a time, among its own corrupted versions,
    view 1 of a corruption must find view 2 of the same corruption; the mean over images. Augmented views, each
    corruption's drawn by itself, the same for all severities.

    ``corrupted/clean/{CORRUPTION,mean}/SEVERITY/top1``: a corrupted image must find its original among the originals
    of all images. No augmentation; ``mean`` is over the corruptions.
    """
    settings = subject.settings.corrupted
    within, clean = ("within" in settings.meanings), ("clean" in settings.meanings)
    originals = subject.clean(subject.representation, subject.images) if clean else None
    found: dict[str, float] = {}
    for severity, corruptions in corruptions_of(settings, subject.data.name).items():
        pairs: list[tuple[Tensor, Tensor]] = []
        for corruption in corruptions:
            images = _corrupted(subject, corruption, severity)
            if within:
                key = subject.views_key(f"corrupted views of {corruption}")
                pairs.append(subject.pairs(subject.representation, images, key))
            if originals is not None:
                found[f"corrupted/clean/{corruption}/{severity}/top1"] = _found(subject, images, originals)
        if within:
            found |= _within(subject, pairs, severity)
        if originals is not None:
            each = [found[f"corrupted/clean/{corruption}/{severity}/top1"] for corruption in corruptions]
            found[f"corrupted/clean/mean/{severity}/top1"] = fmean(each)
    return found


def _within(subject: Subject, pairs: Sequence[tuple[Tensor, Tensor]], severity: int) -> dict[str, float]:
    u_NMD, v_NMD = (torch.stack(views, dim=1) for views in zip(*pairs, strict=True))
    each = retrieval_within(u_NMD, v_NMD, similarity=subject.settings.similarity)
    return {f"corrupted/within/{severity}/{key}": value for key, value in each.items()}


def _found(subject: Subject, images: ImageSet, originals: Tensor) -> float:
    queries = subject.clean(subject.representation, images)
    each = retrieval(queries, originals, ks=(1,), similarity=subject.settings.similarity, directions=("u2v",))
    return each["u2v/top1"]


def _corrupted(subject: Subject, corruption: str, severity: int) -> ImageSet:
    """The split's images under a corruption: the official ones, or made here, alike for every setting of one seed."""
    images, data, official = subject.images, subject.data, subject.settings.corrupted.dir
    if official is not None:
        return load_corrupted(
            data.name, dir=official, corruption=corruption, severity=severity, clean=images, verify=data.verify
        )
    pixels = corrupt(
        images.images,
        corruption=corruption,
        severity=severity,
        seed=derive(subject.seed, f"{subject.settings.split} corruptions"),
        positions=torch.arange(len(images)),
    )
    return replace(images, images=pixels)
