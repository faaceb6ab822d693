"""The samples that a plan leaves out: over the epochs, all samples equally often."""

from __future__ import annotations

import numpy as np
import pytest
from samplers.small import build_small, embeddings

from mbcl.samplers import SAMPLERS, check_plan

NUM_SAMPLES, BATCH_SIZE, EPOCHS = 19, 4, 80
UNCHANGING = ("fixed", "full", "all_batches", "osgd_exhaustive")
"""Samplers whose left out samples do not depend on the epoch."""


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in UNCHANGING])
def test_plans_leave_out_every_sample_equally_often(name: str) -> None:
    """19 samples in batches of 4, in pools of 8 or 12: neither divides."""
    sampler = build_small(name, BATCH_SIZE)
    visits = np.zeros(NUM_SAMPLES)
    places = 0
    for epoch in range(EPOCHS):
        # A covering sampler must not prefer any sample. A selecting one may, so it gets new embeddings each epoch.
        z = embeddings(NUM_SAMPLES, seed=0 if sampler.covers_all else epoch)
        plan = check_plan(sampler.plan(NUM_SAMPLES, z, epoch=epoch), sampler, NUM_SAMPLES)
        visited = np.unique(plan.batches.numpy())
        visits[visited] += 1
        places += len(visited)
    share = places / EPOCHS / NUM_SAMPLES
    assert share < 1
    error = np.sqrt(share * (1 - share) / EPOCHS)
    # 4.5 standard errors: one run in 10,000 would exceed them by chance, and the seeds are fixed.
    assert np.abs(visits / EPOCHS - share).max() < 4.5 * error
