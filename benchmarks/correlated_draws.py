"""How much the mean over draws that share views varies, against draws of views of their own.

mbcl train --config tune_spaces/digits.yaml --out /tmp/shuffle
mbcl train --config tune_spaces/digits.yaml --set 'sampler={name: spectral, k: 4}' --out /tmp/spectral
python benchmarks/correlated_draws.py /tmp/shuffle /tmp/spectral

Each repetition makes 42 views of every test image, of its own random stream. Compared are the variances, over
repetitions, of the mean over 20 pairs of 40 views, over the 20 consecutive pairs of 21 views, and over 10 pairs of 20
views. Intervals are 95 % percentile intervals of a bootstrap of the repetitions.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.data import ImageSet, make_views
from mbcl.engine.setup import load_data
from mbcl.evaluation import find_weights
from mbcl.io.store import LocalStore
from mbcl.metrics import both_directions, retrieval
from mbcl.seeding import derive, numpy_generator

REPETITIONS, VIEWS, METRICS = 200, 42, ("mrr", "top1")
NAMES = ("sd of a draw", "correlation of neighbours", "21 against 40 views", "21 against 20 views")


@torch.no_grad()
def measure(folder: str) -> NDArray[np.float64]:
    """Measure the metrics of all consecutive pairs of views, (repetitions, pairs, metrics)."""
    weights = find_weights(LocalStore(folder), None)
    images = load_data(weights.experiment.data, seed=0).test
    assert isinstance(images, ImageSet)
    model, positions = weights.model(in_channels=images.channels).eval(), torch.arange(len(images))
    found = []
    for repetition in range(REPETITIONS):
        seed, pixels = derive(repetition, "variance of draws"), images.pixels(positions)
        views = make_views(pixels, positions, images=images, seed=seed, epoch=0, view=range(VIEWS))
        rows = torch.cat([model(part) for part in views.split(256)]).unflatten(0, (VIEWS, -1))
        pairs = [both_directions(retrieval(u, v, ks=(1,))) for u, v in zip(rows[:-1], rows[1:], strict=True)]
        found.append([[pair[metric] for metric in METRICS] for pair in pairs])
    return np.array(found)


def variance(*means: NDArray[np.float64]) -> float:
    """Return the variance over repetitions, a mean over disjoint sets of views."""
    return float(np.mean([each.var(ddof=1) for each in means]))


def compare(values_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what ``NAMES`` says."""
    apart = variance(values_RP[:, 0:40:2].mean(axis=1))
    chain = variance(values_RP[:, :20].mean(axis=1), values_RP[:, 21:].mean(axis=1))
    half = variance(values_RP[:, 0:20:2].mean(axis=1), values_RP[:, 20:40:2].mean(axis=1))
    centred = values_RP - values_RP.mean(axis=0)
    of_one = (centred**2).mean()
    return np.array([of_one**0.5, (centred[:, 1:] * centred[:, :-1]).mean() / of_one, chain / apart, chain / half])


def show(title: str, values_RP: NDArray[np.float64]) -> None:
    """Print a comparison with intervals."""
    rows = numpy_generator(0, "bootstrap").integers(REPETITIONS, size=(1000, REPETITIONS))
    low, high = np.percentile([compare(values_RP[each]) for each in rows], [2.5, 97.5], axis=0)
    for name, value, *bounds in zip(NAMES, compare(values_RP), low, high, strict=True):
        print(f"{title}, {name}: {value:.4f} [{bounds[0]:.4f}, {bounds[1]:.4f}]", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    first, second = map(measure, sys.argv[1:3])
    for index, metric in enumerate(METRICS):
        show(f"{metric} of the first", first[..., index])
        show(f"{metric} of the second", second[..., index])
        show(f"{metric}, difference", second[..., index] - first[..., index])
