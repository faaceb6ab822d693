"""The mean loss over all batches, and numerical minima from random restarts where no optimum is known.

Letters: 2 the views, R runs, N samples, D dimensions, K batches, B samples per batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from mbcl.samplers import combinations, one_thread
from mbcl.seeding import numpy_generator
from mbcl.synthetic.points import CHUNK_ELEMENTS, Points, clip_losses, similarities

EXACT_BATCHES = 20_000
"""Maximum number of batches for an exact mean; above it the mean is estimated."""
SAMPLED_BATCHES = 2000
"""Number of batches drawn for an estimate, at least 2."""
STEPS = 2000
"""Maximum number of L-BFGS iterations; from random starts it needs a few hundred."""


def mean_batch_loss(x_2RND: Tensor, batch_size: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Compute the mean CLIP loss over all C(N, B) batches, exactly or by an unbiased Monte Carlo estimate.

    The estimate is the mean over batches drawn uniformly and independently; its expectation is the mean over all.

    Args:
        x_2RND: (2, R, N, D) float, raw points.
        batch_size: B.
        generator: draws the batches; all runs share them.

    Returns:
        The means, (R,) float64, and their standard errors, (R,) float64; 0 where the mean is exact.
    """
    _, num_runs, num_samples, _ = x_2RND.shape
    is_exact = math.comb(num_samples, batch_size) <= EXACT_BATCHES
    if is_exact:
        batches_KB = combinations(num_samples, batch_size)
    else:
        # One draw at a time avoids a K x N matrix of random numbers, which is large for N = 4,096.
        choices = (num_samples, batch_size)
        drawn = [generator.choice(*choices, replace=False, shuffle=False) for _ in range(SAMPLED_BATCHES)]
        batches_KB = torch.from_numpy(np.stack(drawn))
    loss_RK = torch.stack([_losses(x_2RND[:, [run]], batches_KB) for run in range(num_runs)])
    mean_R = loss_RK.mean(dim=1)
    return mean_R, torch.zeros_like(mean_R) if is_exact else loss_RK.std(dim=1) / math.sqrt(SAMPLED_BATCHES)


def _losses(x_21ND: Tensor, batches_KB: Tensor) -> Tensor:
    """Return the losses, (K,), of batches of one run."""
    z_NN = similarities(x_21ND)[0]
    chunk = max(1, CHUNK_ELEMENTS // batches_KB.shape[1] ** 2)
    return torch.cat([clip_losses(z_NN[part[:, :, None], part[:, None, :]]) for part in batches_KB.split(chunk)])


def starting_points(num_samples: int, dim: int, seed: int) -> Tensor:
    """Draw the starting points of a run: (2, N, D) float64, standard normal, a function of the seed.

    Example:
        >>> starting_points(8, 16, 0).shape
        torch.Size([2, 8, 16])
    """
    return torch.from_numpy(numpy_generator(seed, "synthetic/start").standard_normal((2, num_samples, dim)))


def least_of_restarts(
    batches_KB: Tensor,
    *,
    num_samples: int,
    dim: int,
    restarts: int,
    done: Callable[[], None] = lambda: None,
) -> tuple[float, Tensor]:
    """Minimise the mean loss of some batches by L-BFGS from random starts; return the minimum and its (2, N, D) points.

    The result is an upper bound of the global minimum, which further restarts may lower.

    Args:
        batches_KB: (K, B) int64: one batch of all samples, or all batches of size B.
        num_samples: N.
        dim: D.
        restarts: the number of random starts, which differ from the starting points of all runs.
        done: called after each restart.
    """
    results = []
    for restart in range(restarts):
        start = numpy_generator(0, "synthetic/restart", restart).standard_normal((2, num_samples, dim))
        with one_thread():
            result = minimize(
                _loss_and_gradient,
                start.ravel(),
                args=(batches_KB, num_samples),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 0.0, "gtol": 1e-9},
            )
        results.append((float(result.fun), result.x))
        done()
    loss, x = min(results, key=lambda result: result[0])
    return loss, torch.from_numpy(x).view(2, num_samples, dim)


def _loss_and_gradient(
    x: NDArray[np.float64], batches_KB: Tensor, num_samples: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the mean loss and its gradient at a flat vector of all rows, as ``scipy.optimize`` needs them."""
    points = Points(torch.from_numpy(x).view(2, 1, num_samples, -1))
    loss_1, gradient = points.gradient(batches_KB[None])
    return float(loss_1), gradient.ravel().numpy()
