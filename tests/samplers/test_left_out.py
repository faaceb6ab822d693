"""Whom plans leave out where the data set does not divide: everybody equally often, over the epochs."""

from __future__ import annotations

import numpy as np
import pytest
from samplers.small import build_small, embeddings

from mbcl.samplers import SAMPLERS, check_plan

NUM_SAMPLES, BATCH_SIZE, EPOCHS = 19, 4, 80
UNCHANGING = ("fixed", "full", "all_batches", "osgd_exhaustive")
"""What they leave out, if anything, does not hang on the epoch."""


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in UNCHANGING])
def test_no_sample_is_left_out_more_often_than_chance(name: str) -> None:
    """19 samples in batches of 4, in pools of 8 or 12: neither divides."""
    sampler = build_small(name, BATCH_SIZE)
    visits = np.zeros(NUM_SAMPLES)
    places = 0
    for epoch in range(EPOCHS):
        # A sampler that covers must not prefer any sample; one that selects may, so it meets new ones each epoch.
        held = embeddings(NUM_SAMPLES, seed=0 if sampler.covers_all else epoch)
        plan = check_plan(sampler.plan(NUM_SAMPLES, held, epoch=epoch), sampler, NUM_SAMPLES)
        visited = np.unique(plan.batches.numpy())
        visits[visited] += 1
        places += len(visited)
    share = places / EPOCHS / NUM_SAMPLES
    assert share < 1
    error = np.sqrt(share * (1 - share) / EPOCHS)
    # 4.5 standard errors: one run in 10,000 would pass them by chance, and the seeds are fixed.
    assert np.abs(visits / EPOCHS - share).max() < 4.5 * error
