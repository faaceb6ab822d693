"""The linear probe: a linear classifier on frozen features.

Letters: N samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_number

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_MEMORY = 20
"""Steps in L-BFGS's history."""
_ROWS = 4096
"""Rows that are turned into the coordinates of the solver at once."""
_ITERATIONS = 300
"""Maximum number of L-BFGS iterations. With strong penalties it converges earlier. After this number, the objective was
within a thousandth of its minimum on the data that we examined."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: softmax of ``((x - mean) / scale) @ weight + bias``.

    Args:
        classes: (C,) int64 labels, ascending.
        mean: (F,) float64.
        scale: (F,) float64 standard deviations; 1 where a feature is constant.
        weight: (F, C) float64.
        bias: (C,) float64.
        penalty: the lambda with which it was fitted.
    """

    classes: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float

    def logits(self, x: Tensor) -> Tensor:
        """Map (N, F) features to (N, C) float64 logits."""
        return ((x.double() - self.mean) / self.scale) @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """Map (N, F) features to (N,) int64 labels on the CPU."""
        return self.classes[self.logits(x).argmax(dim=1).cpu()]

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of the (N, F) features whose predicted label equals that in ``labels``, (N,) int64."""
        return float((self.predict(x) == labels.cpu()).double().mean())


def fit_probe(x: Tensor, labels: Tensor, *, penalty: float = 1e-2) -> LinearProbe:
    r"""Multinomial logistic regression on standardised features, to its minimum.

    .. math:: \min_{W, b} \frac1N \sum_i \mathrm{CE}(y_i, \tilde x_i W + b) + \frac{\lambda}{2} \|W\|^2

    The objective is convex and the start is zero: the same features give the same classifier. The solver is L-BFGS with
    a strong Wolfe line search in float64. Its coordinates are preconditioned by the bound
    :math:`H \preceq \tfrac12 X^\top X / N + \lambda` on the Hessian of each class, so that no curvature exceeds 1.
    Without it, correlated features, such as pixels, would take several times as many steps.

    Args:
        x: (N, F) float features.
        labels: (N,) int64, at least two different ones.
        penalty: lambda, > 0; scikit-learn's ``C`` is 1 / (lambda N).

    Raises:
        ValueError: if shapes do not fit or an entry is not finite.
        ConfigError: if ``penalty`` is out of range, or there is a single class.

    Reference:
        Linear evaluation as in Kolesnikov et al., Revisiting Self-Supervised Visual Representation Learning, CVPR
        2019, section 5.2: logistic regression by L-BFGS; Liu & Nocedal 1989 for the solver; Boehning 1992,
        Multinomial logistic regression algorithm, for the bound.

    Example:
        >>> fit_probe(torch.tensor([[0.0], [1.0]]), torch.tensor([4, 2])).predict(torch.tensor([[0.1], [0.8]])).tolist()
        [4, 2]
    """
    return _Problem(x, labels).solve(check_number("penalty", penalty, above=0.0))


def choose_probe(x: Tensor, labels: Tensor, held_out: Tensor, *, penalties: Sequence[float] = PENALTIES) -> LinearProbe:
    """Choose the penalty by the accuracy on held-out rows, then fit the probe on all rows.

    Args:
        x: (N, F) float features.
        labels: (N,) int64.
        held_out: (M,) int64 row numbers of the held-out part, 0 < M < N.
        penalties: the candidates; of ties the largest is taken.

    Raises:
        ValueError, ConfigError: as in :func:`fit_probe`.
    """
    if not penalties:
        raise ConfigError("penalties: at least one is needed")
    order = sorted((check_number("penalty", penalty, above=0.0) for penalty in penalties), reverse=True)
    if len(order) == 1:
        return fit_probe(x, labels, penalty=order[0])
    in_training = torch.ones(len(x), dtype=torch.bool)
    in_training[held_out.cpu()] = False
    training_rows = in_training.nonzero()[:, 0]
    training = _Problem(x[training_rows.to(x.device)], labels.cpu()[training_rows])
    probes: list[LinearProbe] = []
    for penalty in order:  # warm start: each from the solution of the previous, stronger penalty
        probes.append(training.solve(penalty, probes[-1] if probes else None))
    held_out_x, held_out_labels = x[held_out.to(x.device)], labels.cpu()[held_out.cpu()]
    best = max(probes, key=lambda probe: probe.accuracy(held_out_x, held_out_labels))  # the first of ties
    del training
    return _Problem(x, labels).solve(best.penalty, best)


class _Problem:
    """The regression problem on some features, to be solved for any penalty.

    Arguments and errors are those of :func:`fit_probe`.
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        if x.ndim != 2 or 0 in x.shape or labels.shape != x.shape[:1] or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"probe: finite (N, F) features and (N,) labels are needed; found {tuple(x.shape)}, "
                f"{tuple(labels.shape)}"
            )
        self._classes, target = labels.cpu().unique(return_inverse=True)
        if len(self._classes) < 2:
            raise ConfigError(f"probe: at least 2 classes are needed, found {len(self._classes)}")
        x = x.detach().to(torch.float64, copy=True)  # the only copy in float64: 1.1 GB for the pixels of CIFAR
        self._mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
        # By rounding, a constant feature has a deviation of some last bits; dividing by it would amplify noise.
        self._scale = torch.where(scale <= 1e-10 * self._mean.abs().clamp(min=1e-10), 1.0, scale)
        x.sub_(self._mean).div_(self._scale)
        self._target = target.to(x.device)
        self._curvature, self._axes = torch.linalg.eigh(x.T @ x / (2 * len(x)))
        for rows in x.split(_ROWS):
            rows.copy_(rows @ self._axes)
        self._x = x

    def solve(self, penalty: float, start: LinearProbe | None = None) -> LinearProbe:
        """Fit the probe of a penalty, from the weights of ``start`` if it has the same classes, else from zero."""
        shrink = (self._curvature.clamp(min=0) + penalty).rsqrt()[:, None]
        weight = torch.zeros((self._x.shape[1], len(self._classes)), dtype=self._x.dtype, device=self._x.device)
        bias = weight.new_zeros(len(self._classes))
        if start is not None and torch.equal(start.classes, self._classes):
            weight, bias = self._axes.T @ start.weight / shrink, start.bias
        weight, bias = self._minimise(weight, bias, shrink, penalty)
        return LinearProbe(self._classes, self._mean, self._scale, self._axes @ (shrink * weight), bias, penalty)

    def _minimise(self, weight: Tensor, bias: Tensor, shrink: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Minimise the objective from a start.

        Returns:
            (F, C) weights along the axes, divided by ``shrink``; (C,) biases.
        """
        with torch.enable_grad(), torch.autocast(device_type=self._x.device.type, enabled=False):
            weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            solver = torch.optim.LBFGS(
                [weight, bias],
                max_iter=_ITERATIONS,
                history_size=_MEMORY,
                tolerance_grad=1e-7,
                tolerance_change=1e-12,
                line_search_fn="strong_wolfe",
            )

            def loss() -> Tensor:
                solver.zero_grad()
                scaled = shrink * weight
                value = F.cross_entropy(self._x @ scaled + bias, self._target) + penalty / 2 * scaled.square().sum()
                value.backward()
                return value

            solver.step(loss)
        return weight.detach(), bias.detach()
