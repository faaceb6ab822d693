"""The published planner, a plain reference implementation: the baseline of the benchmarks.

All matrices are dense, and every stage uses the library routine that the published program uses. It shares no code
with :mod:`mbcl.samplers`, so that a mistake in one of them shows as a difference.

Letters: M samples of a pool, D dimensions, B samples a batch, K batches of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import eigsh
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]

STAGES = ("affinity", "eigenvectors", "kmeans", "distances", "assignment")
SHIFT = 1.001
"""The shift of shift-invert, just above 1, the largest eigenvalue of the normalised affinity. A shift of 2, as in
scikit-learn's spectral clustering, would make this stage up to three times as slow, and the baseline with it."""


def plan_published(
    z1_MD: NDArray[np.floating],
    z2_MD: NDArray[np.floating],
    *,
    batch_size: int,
    temperature: float = 0.1,
    seed: int = 0,
    restarts: int = 1,
    clock: Callable[[], float] = process_time,
) -> tuple[NDArray[np.int64], dict[str, float]]:
    r"""Even-sized spectral clustering of one pool.

    With :math:`Z = \hat u \hat v^T / \tau` and :math:`\phi(x) = \log(1 + (B-1) e^x)`, the affinity is

    .. math:: \log W_{ij} = \phi(Z_{ij}-Z_{ii}) + \phi(Z_{ji}-Z_{ii}) + \phi(Z_{ji}-Z_{jj}) + \phi(Z_{ij}-Z_{jj})

    with a zero diagonal. Then: the K leading eigenvectors of :math:`D^{-1/2} W D^{-1/2}`, rows divided by the root of
    the degree, k-means, and the assignment of least total Euclidean distance of all samples to B copies of every
    centre, an M x M linear sum assignment.

    Args:
        z1_MD: (M, D) float, un-normalised embeddings of view 1; M a multiple of B, at least 2 B.
        z2_MD: (M, D), view 2.
        batch_size: B.
        temperature: tau.
        seed: of k-means and of the eigensolver's starting vector.
        restarts: of k-means: 1 with today's scikit-learn, 10 with the one that the authors pinned.
        clock: returns seconds.

    Returns:
        (K, B) int64 rows of the pool, ascending in a batch, batches by their first row; and the seconds of each of
        ``STAGES``.

    Stability:
        As published, W is formed directly, not its logarithm, and overflows for temperatures below about 0.01.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5 and algorithm 2.
    """
    from sklearn.cluster import KMeans

    num_batches = len(z1_MD) // batch_size
    times = [clock()]
    w_MM = _affinity(z1_MD, z2_MD, batch_size, temperature)
    degree_M = w_MM.sum(axis=1)
    root_M = np.sqrt(degree_M)
    n_MM = w_MM / (root_M[:, None] * root_M[None, :])
    times.append(clock())
    start_M = np.random.default_rng(seed).uniform(-1, 1, len(n_MM))
    _, q_MK = eigsh(n_MM, k=num_batches, sigma=SHIFT, which="LM", v0=start_M)
    x_MK = q_MK / root_M[:, None]
    times.append(clock())
    centre_KK = KMeans(num_batches, n_init=restarts, random_state=seed).fit(x_MK).cluster_centers_
    times.append(clock())
    distance_MM = cdist(x_MK, np.repeat(centre_KK, batch_size, axis=0))
    times.append(clock())
    row_M, copy_M = linear_sum_assignment(distance_MM)
    times.append(clock())
    cluster_M = np.empty(len(row_M), dtype=np.int64)
    cluster_M[row_M] = copy_M // batch_size
    rows_KB = np.argsort(cluster_M, kind="stable").reshape(num_batches, batch_size)
    return rows_KB[np.argsort(rows_KB[:, 0])], dict(zip(STAGES, np.diff(times).tolist(), strict=True))


def _affinity(z1_MD: NDArray[np.floating], z2_MD: NDArray[np.floating], batch_size: int, temperature: float) -> Array:
    """(M, M) float64, zero on the diagonal; normalised in the inputs' precision, the rest in float64, as published."""
    u_MD, v_MD = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1_MD, z2_MD))
    z_MM = (u_MD @ v_MD.T).astype(np.float64) / temperature
    own_M = z_MM.diagonal()
    log_w_MM = np.zeros_like(z_MM)
    for similarity_MM in (z_MM, z_MM.T):
        for positive in (own_M[:, None], own_M[None, :]):
            log_w_MM += np.log(1 + (batch_size - 1) * np.exp(similarity_MM - positive))
    w_MM: NDArray[np.float64] = np.exp(log_w_MM)
    np.fill_diagonal(w_MM, 0.0)
    return w_MM
