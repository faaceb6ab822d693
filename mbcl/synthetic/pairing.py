"""Pairing of samples as opposites: the exact minimum-weight perfect matching by similarity.

Letters: N samples, E pairs that are candidates (edges) of the matching.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import csr_array

Array = NDArray[np.float64]
Positions = NDArray[np.int64]

PAIRS_A_SAMPLE = 8
"""The first search uses this many times N candidate pairs."""
SCALE = 1000.0
"""Factor on the costs, so that the solver's tolerance of 1e-6 is a difference of 1e-9 in similarity."""


def opposites(z_NN: Array) -> Positions:
    """Find the pairing of samples with the minimum sum of similarities, in both directions.

    The assignment problem, which gives every sample a successor, is a relaxation of this matching problem. Each cycle
    of even length splits into two pairings, of which the better one is taken. Only cycles of odd length need the
    integer program; near the optimum there are none.

    Args:
        z_NN: (N, N) float64, N even.

    Returns:
        (N,) int64, the partner of each sample.

    Example:
        >>> opposites(np.array([[1, 0, -1, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1.0]])).tolist()
        [2, 3, 0, 1]
    """
    cost_NN = z_NN + z_NN.T
    np.fill_diagonal(cost_NN, 4.0 * len(z_NN) * (1 + np.abs(cost_NN).max()))
    _, next_N = linear_sum_assignment(cost_NN)
    partner_N = np.full(len(z_NN), -1, dtype=np.int64)
    for start in range(len(z_NN)):
        if partner_N[start] >= 0:
            continue
        cycle = [start]
        while next_N[cycle[-1]] != start:
            cycle.append(int(next_N[cycle[-1]]))
        if len(cycle) % 2:
            return _matching(cost_NN, next_N)
        pairings = [list(zip(cycle[shift::2], cycle[1 + shift :: 2] + cycle[:shift], strict=True)) for shift in (0, 1)]
        for a, b in min(pairings, key=lambda pairs: sum(cost_NN[a, b] for a, b in pairs)):
            partner_N[a], partner_N[b] = b, a
    return partner_N


def _matching(cost_NN: Array, next_N: Positions) -> Positions:
    """Find the minimum-cost perfect matching by an integer program over candidate pairs (reduced-cost pricing).

    With dual prices y such that all reduced costs ``r_ab = cost_ab - y_a - y_b`` are non-negative, a matching costs the
    sum of the prices plus the sum R of its reduced costs. A matching found with all pairs of r up to R is therefore
    optimal: a pair with a larger r alone costs more than R.

    Reference:
        Edmonds, Maximum matching and a polyhedron with 0,1-vertices, 1965.
    """
    price_N = _prices(cost_NN, next_N)
    a, b = np.triu_indices(len(cost_NN), 1)
    reduced = np.maximum(0.0, cost_NN[a, b] - price_N[a] - price_N[b])
    last = min(len(reduced), PAIRS_A_SAMPLE * len(cost_NN)) - 1
    limit = float(np.partition(reduced, last)[last])
    while True:
        admitted_E = np.flatnonzero(reduced <= limit)
        chosen_E = _integer_program(a[admitted_E], b[admitted_E], reduced[admitted_E], len(cost_NN))
        if chosen_E is None:  # the candidate pairs contain no perfect matching
            limit = 2 * limit + 1 / SCALE
            continue
        pairs = admitted_E[chosen_E]
        total = float(reduced[pairs].sum())
        if total <= limit or len(admitted_E) == len(reduced):
            break
        limit = total
    partner_N = np.empty(len(cost_NN), dtype=np.int64)
    partner_N[a[pairs]], partner_N[b[pairs]] = b[pairs], a[pairs]
    return partner_N


def _prices(cost_NN: Array, next_N: Positions) -> Array:
    """Return dual prices, (N,), of the optimal assignment: shortest paths between columns, by Bellman-Ford."""
    matched_cost_N = cost_NN[np.arange(len(cost_NN)), next_N]
    column_N = np.zeros(len(cost_NN))
    for _ in range(len(cost_NN)):  # an optimal assignment has no negative cycle, so N rounds are enough
        shortened_N = np.minimum(column_N, (column_N[next_N] - matched_cost_N + cost_NN.T).min(axis=1))
        if np.array_equal(shortened_N, column_N):
            break
        column_N = shortened_N
    return (matched_cost_N - column_N[next_N] + column_N) / 2


def _integer_program(a_E: Positions, b_E: Positions, cost_E: Array, num_samples: int) -> NDArray[np.bool_] | None:
    """Return a mask of the candidate pairs in the minimum-cost perfect matching; None if they contain none."""
    columns = np.concatenate([np.arange(len(a_E))] * 2)
    shape = (num_samples, len(a_E))
    incidence_NE = csr_array((np.ones(len(columns)), (np.concatenate([a_E, b_E]), columns)), shape=shape)
    result = milp(
        SCALE * cost_E,
        constraints=LinearConstraint(incidence_NE, 1, 1),
        integrality=np.ones(len(a_E)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else result.x > 0.5
