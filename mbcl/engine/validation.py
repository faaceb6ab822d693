"""Retrieval, and on request kNN and a linear probe, on the validation split, measured while a training runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from mbcl.config.evaluation import Evaluation
from mbcl.data.images import stratified_split
from mbcl.data.samples import SampleSet
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.embedding_pass import clean_features, embed_views, key_of_draws
from mbcl.engine.plan_source import require_finite
from mbcl.engine.step import Learner
from mbcl.errors import DivergenceError
from mbcl.metrics import both_directions, choose_probe, knn, retrieval
from mbcl.plan import Embeddings


def validate(learner: Learner, images: SampleSet, settings: Evaluation, *, seed: int, epoch: int) -> dict[str, float]:
    """Return the metrics of the validation split by their contract names without ``val/``; a collective call.

    ``retrieval/mrr`` and ``retrieval/top1`` are means over both directions and over ``validation_draws`` of the views.
    ``validation_metrics`` adds ``knn/top1`` and ``probe/top1``, fitted on the training images. The network computes
    without autocast.

    Args:
        learner: the model.
        images: the validation split; pairs are measured as they are, once.
        settings: the evaluation block.
        seed: the experiment's.
        epoch: counts from 0, for error messages.

    Raises:
        TrainingError: on every rank alike, if embeddings are not finite.
    """
    draws, world = images.to_eval_draws(settings.validation_draws), learner.world
    learner.share_statistics()
    embed = partial(
        embed_views,
        learner.model,
        images,
        key_of_draws(seed, "validation views", draws, augmented=images.draws_when_measured),
        num_views=draws + 1,
        mode="eval",
        batch_size=settings.batch_size,
        world=world,
        compute=replace(learner.compute, precision="float32"),
    )
    views = collectives.run_and_sync_errors(embed, world)
    found = []
    for u, v in pairwise(_gathered(views, world)):
        require_finite(partial(Embeddings, u, v), epoch)
        found.append(both_directions(retrieval(u, v, ks=(1,), similarity=settings.similarity)))
    measured = {f"retrieval/{key}": fmean(each[key] for each in found) for key in found[0]}
    return measured | (_classify(learner, images, settings, seed) if settings.validation_metrics else {})


def _gathered(views: Sequence[tuple[Tensor, Tensor]], world: World) -> Iterator[Tensor]:
    """Yield all rows of each view, in the same order of samples."""
    order = None
    for rows, indices in views:
        gathered, positions = (collectives.all_gather_ragged(part, world) for part in (rows, indices))
        order = positions if order is None else order
        yield gathered[positions.argsort()[order].to(gathered.device)]


def _classify(learner: Learner, images: SampleSet, settings: Evaluation, seed: int) -> dict[str, float]:
    """Return the accuracies of the classifiers, as the evaluation after training measures them on another split."""
    world, compute = learner.world, replace(learner.compute, precision="float32")
    bank, queries = (
        clean_features(learner.model, each, batch_size=settings.batch_size, world=world, compute=compute)
        for each in (learner.images, images)
    )
    if not bool(torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise DivergenceError("the features are not finite in a validation")
    labels = learner.images.labels
    measured: dict[str, float] = {}
    if "knn" in settings.validation_metrics:
        predicted = knn(bank, labels, queries, **settings.knn.model_dump())
        measured["knn/top1"] = float((predicted == images.labels).double().mean())
    if "probe" in settings.validation_metrics:
        _, held_out = stratified_split(labels, settings.probe.held_out, seed, "probe")
        probe = choose_probe(bank, labels, held_out, penalties=settings.probe.penalties)
        measured["probe/top1"] = probe.accuracy(queries, images.labels)
    return measured
