"""LARS: layer-wise adaptive rate scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from mbcl.functional import check_number


class LARS(Optimizer):
    r"""SGD with momentum and a layer-wise rate: each tensor's step is scaled to the norm of the tensor.

    For a tensor p with more than one dimension, weight decay w and trust coefficient c:

    .. math:: g' = s\,(g + w p), \quad s = c\,\|p\| / \|g + w p\|
        \quad (s = 1 \text{ if either norm is } 0)

    For a tensor with at most one dimension (biases, batch norm) :math:`g' = g`: no decay, no scaling. Then
    :math:`m \leftarrow \mu m + g'` and :math:`p \leftarrow p - \eta m`. The rate :math:`\eta` multiplies outside the
    momentum, so a change of it rescales the whole history. If the gradient is zero and w > 0, the decay term alone is
    scaled: g' = c p for every w.

    Args:
        params: tensors or parameter groups.
        lr: :math:`\eta`, at least 0.
        momentum: :math:`\mu`, in [0, 1].
        weight_decay: w, at least 0.
        trust_coefficient: c, above 0.

    Raises:
        ConfigError: if a value is out of range.
        ValueError: if a gradient is sparse.

    Reference:
        You et al., Large Batch Training of Convolutional Networks, arXiv 1708.03888, algorithm 1, in the form of the
        published method's training, where decay enters the norm and 1-d tensors are left out.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> p.grad = torch.tensor([[0.0, 1.0]])
        >>> LARS([p], lr=1.0, weight_decay=0.0, trust_coefficient=0.1).step()  # the step is 0.1 * 5 long
        >>> p.data
        tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
    ) -> None:
        check_number("momentum", momentum, least=0.0, most=1.0)
        check_number("weight_decay", weight_decay, least=0.0)
        check_number("trust_coefficient", trust_coefficient, above=0.0)
        check_number("lr", lr, least=0.0)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; ``closure`` evaluates the model again and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in parameters):
                raise ValueError("LARS: sparse gradients are not supported")
            for device in {p.device for p in parameters}:
                self._update([p for p in parameters if p.device == device], group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update tensors of one device and their momenta, each operation on all tensors in one call."""
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        torch._foreach_mul_(self._momenta(parameters), group["momentum"])
        scaled, unscaled = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        if unscaled:
            torch._foreach_add_(self._momenta(unscaled), _gradients(unscaled))
        if scaled:
            gradients = torch._foreach_add(_gradients(scaled), scaled, alpha=group["weight_decay"])
            # Norms stay tensors: Python numbers would make every step wait for the device.
            p_norms, g_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (scaled, gradients))
            scales = group["trust_coefficient"] * p_norms / g_norms
            scales = torch.where((p_norms > 0) & (g_norms > 0), scales, torch.ones_like(scales))
            torch._foreach_addcmul_(self._momenta(scaled), gradients, list(scales.unbind()))
        torch._foreach_add_(parameters, self._momenta(parameters), alpha=-group["lr"])

    def _momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        return [self.state[p]["momentum_buffer"] for p in parameters]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [cast(Tensor, p.grad) for p in parameters]
