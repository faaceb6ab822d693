"""Which samples are each other's opposites: the pairing whose similarities have the least sum, exactly.

Letters: N samples, E pairs that may be in the pairing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import csr_array

Array = NDArray[np.float64]
Positions = NDArray[np.int64]

PAIRS_A_SAMPLE = 8
"""Among so many times N pairs a pairing is looked for first."""
SCALE = 1000.0
"""What the solver takes for equal, 1e-6, is this many times less of a similarity."""


def opposites(z_NN: Array) -> Positions:
    """The pairing of samples whose similarities, in both directions, have the least sum.

    An assignment of every sample to another is a relaxation of it. Its cycles of even length are pairings as they
    stand. Only cycles of odd length need the search for a matching; near the optimum there are none.

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
        ways = [list(zip(cycle[shift::2], cycle[1 + shift :: 2] + cycle[:shift], strict=True)) for shift in (0, 1)]
        for a, b in min(ways, key=lambda pairs: sum(cost_NN[a, b] for a, b in pairs)):
            partner_N[a], partner_N[b] = b, a
    return partner_N


def _matching(cost_NN: Array, next_N: Positions) -> Positions:
    """The perfect matching of least cost, as an integer program over the few pairs that can be in it.

    With prices y that no pair undercuts, ``r_ab = cost_ab - y_a - y_b >= 0``, a matching costs the sum of the prices
    and of its r. So one whose r have the sum R is the best if all pairs with r up to R were admitted.

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
        if chosen_E is None:  # too few pairs for any matching
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
    """(N,) the prices that an assignment of least cost proves: shortest ways between columns, by Bellman and Ford."""
    paid_N = cost_NN[np.arange(len(cost_NN)), next_N]
    column_N = np.zeros(len(cost_NN))
    for _ in range(len(cost_NN)):  # at an optimal assignment no way of N steps is shorter than all before
        shorter_N = np.minimum(column_N, (column_N[next_N] - paid_N + cost_NN.T).min(axis=1))
        if np.array_equal(shorter_N, column_N):
            break
        column_N = shorter_N
    return (paid_N - column_N[next_N] + column_N) / 2


def _integer_program(a_E: Positions, b_E: Positions, cost_E: Array, num_samples: int) -> NDArray[np.bool_] | None:
    """Which of some pairs make the perfect matching of least cost; None if there is none among them."""
    columns = np.concatenate([np.arange(len(a_E))] * 2)
    shape = (num_samples, len(a_E))
    incidence_NE = csr_array((np.ones(len(columns)), (np.concatenate([a_E, b_E]), columns)), shape=shape)
    found = milp(
        SCALE * cost_E,
        constraints=LinearConstraint(incidence_NE, 1, 1),
        integrality=np.ones(len(a_E)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return None if found.x is None else found.x > 0.5
