"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mbcl.errors import ConfigError
from mbcl.metrics import choose_probe, fit_probe


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    return x[:700], y[:700], x[700:], y[700:]


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_fit_probe_equals_scikit_learn(digits, penalty: float) -> None:
    x, y, others, _ = digits
    scaler = StandardScaler().fit(x.double())
    oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=2000).fit(scaler.transform(x.double()), y)
    probe = fit_probe(x, y, penalty=penalty)
    expected = oracle.predict_proba(scaler.transform(others.double()))
    assert probe.logits(others).softmax(dim=1).numpy() == pytest.approx(expected, abs=2e-4)
    assert probe.predict(others).tolist() == oracle.predict(scaler.transform(others.double())).tolist()


def test_fit_probe_converges_with_correlated_features() -> None:
    """The Hessian has a condition number of 10^6, like that of pixels or of nearly collapsed features."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 30)) * np.logspace(0, -3, 30) @ rng.normal(size=(30, 30))
    y = (x @ rng.normal(size=(30, 4))).argmax(axis=1)
    scaled = StandardScaler().fit_transform(x)
    oracle = LogisticRegression(C=1 / (1e-4 * 400), solver="newton-cg", tol=1e-10, max_iter=1000).fit(scaled, y)
    probe = fit_probe(torch.tensor(x), torch.tensor(y), penalty=1e-4)

    def objective(weight: np.ndarray, bias: np.ndarray) -> float:
        logits = torch.tensor(scaled @ weight + bias)
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(y))) + 5e-5 * float((weight**2).sum())

    least = objective(oracle.coef_.T, oracle.intercept_)
    assert objective(probe.weight.numpy(), probe.bias.numpy()) == pytest.approx(least, rel=1e-4)


def test_choose_probe_takes_the_best_penalty_on_held_out_samples(digits) -> None:
    x, y, others, truth = digits
    held_out = torch.arange(0, 700, 5)
    rest = torch.tensor([row for row in range(700) if row % 5])
    penalties = (1.0, 1e-2, 1e-4)
    scores = [fit_probe(x[rest], y[rest], penalty=p).accuracy(x[held_out], y[held_out]) for p in penalties]
    probe = choose_probe(x, y, held_out, penalties=penalties[::-1])
    assert probe.penalty == penalties[int(np.argmax(scores))]
    assert probe.accuracy(others, truth) > 0.85
    again = choose_probe(x, y, held_out, penalties=penalties)
    assert torch.equal(probe.weight, again.weight), "equal to the last bit"


def test_fit_probe_ignores_sample_order_and_feature_scale(digits) -> None:
    x, y, others, _ = digits
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    logits = fit_probe(x, y, penalty=0.1).logits(others)
    assert fit_probe(x[order], y[order], penalty=0.1).logits(others) == pytest.approx(logits, abs=1e-3)
    assert fit_probe(5 * x + 3, y, penalty=0.1).logits(5 * others + 3) == pytest.approx(logits, abs=1e-3)


def test_fit_probe_takes_constant_features_and_any_labels() -> None:
    x = torch.tensor([[0.0, 0.1], [1.0, 0.1], [0.0, 0.1], [1.0, 0.1]])
    probe = fit_probe(x, torch.tensor([7, -3, 7, -3]))
    assert probe.predict(x).tolist() == [7, -3, 7, -3]
    assert float(probe.weight[1].abs().max()) == 0.0
    assert probe.accuracy(x, torch.tensor([7, -3, 7, 5])) == 0.75, "a class that is not in the training part"


def test_fit_probe_refuses_bad_input() -> None:
    x, y = torch.eye(3), torch.arange(3)
    with pytest.raises(ConfigError, match="at least 2 classes are needed, found 1"):
        fit_probe(x, y * 0)
    with pytest.raises(ConfigError, match="penalty must be > 0, found 0"):
        fit_probe(x, y, penalty=0.0)
    with pytest.raises(ConfigError, match="penalties: at least one"):
        choose_probe(x, y, y[:1], penalties=())
    for features in (x[:2], x / 0):
        with pytest.raises(ValueError, match=r"finite \(N, F\) features"):
            fit_probe(features, y)
