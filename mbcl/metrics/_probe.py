"""A linear classifier on frozen features: what a linear layer can read off them.

Letters: N samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_MEMORY = 20
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: softmax of ``((x - mean) / scale) @ weight + bias``.

    Args:
        classes: (C,) int64 labels, ascending.
        mean: (F,) float64.
        scale: (F,) float64 standard deviations; 1 where a feature is constant.
        weight: (F, C) float64.
        bias: (C,) float64.
        penalty: that it was fitted with.
    """

    classes: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float

    def logits(self, x: Tensor) -> Tensor:
        """(N, F) features to (N, C) float64."""
        return ((x.double() - self.mean) / self.scale) @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """(N, F) features to (N,) int64 labels on the CPU."""
        return self.classes[self.logits(x).argmax(dim=1).cpu()]

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of (N, F) features whose predicted label is that of ``labels``, (N,) int64."""
        return float((self.predict(x) == labels.cpu()).double().mean())


def fit_probe(x: Tensor, labels: Tensor, *, penalty: float = 1e-2, max_iterations: int = 500) -> LinearProbe:
    r"""Multinomial logistic regression on standardised features, to its minimum.

    .. math:: \min_{W, b} \frac1N \sum_i \mathrm{CE}(y_i, \tilde x_i W + b) + \frac{\lambda}{2} \|W\|^2

    The objective is convex and the start is zero: the same features give the same classifier. Solved by L-BFGS with a
    strong Wolfe line search in float64.

    Args:
        x: (N, F) float features.
        labels: (N,) int64, at least two different ones.
        penalty: lambda, > 0; scikit-learn's ``C`` is 1 / (lambda N).
        max_iterations: of L-BFGS, which usually ends earlier.

    Raises:
        ValueError: if shapes do not fit or an entry is not finite.
        ConfigError: if ``penalty`` or ``max_iterations`` is not possible, or there is a single class.

    Reference:
        Linear evaluation as in Kolesnikov et al., Revisiting Self-Supervised Visual Representation Learning, CVPR
        2019, section 5.2: logistic regression by L-BFGS; Liu & Nocedal 1989 for the solver.

    Example:
        >>> fit_probe(torch.tensor([[0.0], [1.0]]), torch.tensor([4, 2])).predict(torch.tensor([[0.1], [0.8]])).tolist()
        [4, 2]
    """
    return _path(x, labels, (check_number("penalty", penalty, above=0.0),), max_iterations)[0]


def choose_probe(
    x: Tensor,
    labels: Tensor,
    held_out: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    max_iterations: int = 500,
) -> LinearProbe:
    """The probe whose penalty predicts a held-out part of the features best, fitted on all of them.

    Args:
        x: (N, F) float features.
        labels: (N,) int64.
        held_out: (M,) int64 rows that only choose the penalty, 0 < M < N.
        penalties: to choose from; of equally good ones the largest is taken.
        max_iterations: see :func:`fit_probe`.

    Raises:
        ValueError, ConfigError: as :func:`fit_probe`.
    """
    if not penalties:
        raise ConfigError("penalties: at least one is needed")
    order = sorted((check_number("penalty", penalty, above=0.0) for penalty in penalties), reverse=True)
    if len(order) == 1:
        return fit_probe(x, labels, penalty=order[0], max_iterations=max_iterations)
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[held_out.cpu()] = False
    rest = kept.nonzero()[:, 0]
    probes = _path(x[rest.to(x.device)], labels.cpu()[rest], order, max_iterations)
    others, truth = x[held_out.to(x.device)], labels.cpu()[held_out.cpu()]
    best = max(probes, key=lambda probe: probe.accuracy(others, truth))  # the first of equal ones
    return fit_probe(x, labels, penalty=best.penalty, max_iterations=max_iterations)


def _path(x: Tensor, labels: Tensor, penalties: Sequence[float], max_iterations: int) -> list[LinearProbe]:
    """A probe for each penalty, largest first: each starts where the one before ended."""
    if x.ndim != 2 or 0 in x.shape or labels.shape != x.shape[:1] or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"probe: finite (N, F) features and (N,) labels are needed; found {tuple(x.shape)}, {tuple(labels.shape)}"
        )
    check_count("max_iterations", max_iterations)
    classes, target = labels.cpu().unique(return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(f"probe: at least 2 classes are needed, found {len(classes)}")
    x = x.detach().double()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    # Rounding leaves a constant feature a deviation of some last bits, which must not be blown up.
    scale = torch.where(scale <= 1e-10 * mean.abs().clamp(min=1e-10), 1.0, scale)
    x = (x - mean) / scale
    weight = torch.zeros((x.shape[1], len(classes)), dtype=x.dtype, device=x.device)
    bias = torch.zeros(len(classes), dtype=x.dtype, device=x.device)
    found = []
    for penalty in penalties:
        weight, bias = _minimise(x, target.to(x.device), weight, bias, penalty, max_iterations)
        found.append(LinearProbe(classes, mean, scale, weight, bias, penalty))
    return found


def _minimise(
    x: Tensor, target: Tensor, weight: Tensor, bias: Tensor, penalty: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Weights, (F, C), and biases, (C,), at the minimum of :func:`fit_probe`, from a start."""
    with torch.enable_grad(), torch.autocast(device_type=x.device.type, enabled=False):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iterations,
            history_size=_MEMORY,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(x @ weight + bias, target) + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
