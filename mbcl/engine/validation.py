"""Retrieval on the validation split, measured while a training runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import fmean

from mbcl.config.evaluation import Evaluation
from mbcl.data.samples import SampleSet
from mbcl.distributed import collectives
from mbcl.engine.embedding_pass import embed_draws, key_of_draws
from mbcl.engine.plan_source import require_finite
from mbcl.engine.step import Learner
from mbcl.metrics import both_directions, retrieval


def validate(learner: Learner, images: SampleSet, settings: Evaluation, *, seed: int, epoch: int) -> dict[str, float]:
    """Return ``mrr`` and ``top1`` in [0, 1]: means over both directions and over ``validation_draws`` of the views.

    A collective call. The network computes without autocast.

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
        embed_draws,
        learner.model,
        images,
        key_of_draws(seed, "validation views", draws, augmented=images.draws_when_measured),
        draws=draws,
        mode="eval",
        batch_size=settings.batch_size,
        world=world,
        compute=replace(learner.compute, precision="float32"),
    )
    found = []
    for shard in collectives.run_and_sync_errors(require_finite, world, embed, epoch):
        u, v = collectives.all_gather_ragged(shard.z1, world), collectives.all_gather_ragged(shard.z2, world)
        found.append(both_directions(retrieval(u, v, ks=(1,), similarity=settings.similarity)))
    return {key: fmean(each[key] for each in found) for key in found[0]}
