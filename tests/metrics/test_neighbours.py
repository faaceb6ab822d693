"""k nearest neighbours: scikit-learn, a slow loop, properties, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from mbcl.errors import ConfigError
from mbcl.metrics import knn


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels) - pixels.mean(), torch.tensor(labels)
    return x[:1200], y[:1200], x[1200:]


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("weighting", ["uniform", "similarity"])
def test_knn_equals_scikit_learn(k: int, weighting: str) -> None:
    bank, labels, queries = digits()
    weights = "uniform" if weighting == "uniform" else lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute").fit(bank, labels)
    predicted = knn(bank, labels, queries, k=k, weighting=weighting)  # type: ignore[arg-type]
    assert (predicted.numpy() == oracle.predict(queries)).mean() >= 0.998, "rounding decides tied votes"


@given(seed=st.integers(0, 2**31), k=st.integers(1, 6), chunk_size=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_knn_equals_a_slow_loop_in_any_order_and_chunks(seed: int, k: int, chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank, queries = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (9, 5))
    labels = torch.randint(-2, 2, (9,), generator=generator) * 10
    expected = []
    for query in queries.numpy():
        cosines = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in bank.numpy()]
        votes: dict[int, float] = {}
        for i in sorted(range(9), key=lambda i: -cosines[i])[:k]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + float(np.exp(cosines[i] / 0.07))
        expected.append(max(votes, key=lambda label: votes[label]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbcl.metrics._retrieval._CHUNK_ROWS", chunk_size)
        assert knn(bank, labels, queries, k=k).tolist() == expected
    order = torch.randperm(9, generator=generator)
    assert knn(bank[order], labels[order], queries, k=k).tolist() == expected


def test_knn_resolves_ties_to_the_smallest_label() -> None:
    assert knn(torch.eye(3), torch.tensor([9, 4, 5]), torch.ones(1, 3), k=3, weighting="uniform").tolist() == [4]


def test_knn_refuses_bad_input() -> None:
    eye, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(ConfigError, match="k must be at most the 3 samples of the bank, found 4"):
        knn(eye, labels, eye, k=4)
    with pytest.raises(ConfigError, match="weighting must be"):
        knn(eye, labels, eye, k=1, weighting="distance")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature"):
        knn(eye, labels, eye, k=1, temperature=0.0)
    with pytest.raises(ValueError, match=r"\(N, F\), \(N,\) and \(Q, F\)"):
        knn(eye, labels[:2], eye, k=1)
    with pytest.raises(ValueError, match="not finite"):
        knn(eye, labels, eye / 0, k=1)


@pytest.mark.parametrize("weighting", ["uniform", "similarity"])
def test_knn_of_ties_does_not_depend_on_the_order_of_the_bank(weighting: str) -> None:
    """All are as near as the k-th: the class of the most samples wins, in any order."""
    bank, labels = torch.ones(60, 4), torch.arange(60) % 7 % 4  # of 0, 1 and 2 there are more than of 3
    queries = torch.ones(3, 4)
    for order in (torch.argsort(labels), torch.argsort(-labels)):
        for k in (1, 5, 60):
            assert knn(bank[order], labels[order], queries, k=k, weighting=weighting).tolist() == [0] * 3  # type: ignore[arg-type]


def test_knn_shares_the_votes_that_are_left_among_ties() -> None:
    """Of k = 3 votes one is of the nearest, label 5, and four samples as near as each other share two."""
    bank = torch.tensor([[1.0, 0.0], *[[0.0, 1.0]] * 4])
    query = torch.tensor([[2.0, 1.0]])
    for last, expected in (([7, 7, 7, 8], 7), ([6, 7, 8, 9], 5)):
        labels = torch.tensor([5, *last])
        assert knn(bank, labels, query, k=3, weighting="uniform").tolist() == [expected]
