"""Execution options of forward and backward passes: number format, memory format, compiler.

They do not change what is computed: losses, plans and metrics are always float32 or better, because models cast their
output up, and objectives and samplers disable autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from mbcl.config.train import Precision, Train
from mbcl.distributed.sync_batchnorm import SyncBatchNorm1d, SyncBatchNorm2d
from mbcl.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """The options of a forward pass.

    Args:
        device: where to compute.
        precision: ``float32`` or ``float64``, the dtype of the weights; or ``bf16`` or ``fp16`` for autocast to it.
        channels_last: whether images and convolutions use the channels-last memory format.
    """

    device: torch.device = torch.device("cpu")
    precision: Precision = "float32"
    channels_last: bool = False

    @staticmethod
    def of(train: Train, device: torch.device, model: nn.Module) -> Compute:
        """Return the options that an experiment trains a model with.

        Channels last by default where it is faster: convolutions on a CPU, except in float64, and in half precision on
        a GPU, whose tensor cores work in that format.
        """
        last = train.channels_last
        if last == "auto":
            fast = train.precision != "float64" if device.type == "cpu" else train.precision in _HALF
            last = fast and any(isinstance(module, nn.Conv2d) for module in model.modules())
        return Compute(device, train.precision, last)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of a forward pass."""
        if self.precision not in _HALF:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Create a gradient scaler, enabled in fp16 only: without it half of the gradients there underflow to zero."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def layout(self, views: Tensor) -> Tensor:
        """Convert images (B, C, H, W) to the memory format of the model's convolutions."""
        return views.contiguous(memory_format=torch.channels_last) if self.channels_last else views

    def place(self, model: M) -> M:
        """Move the model to the device, and its convolutions to the memory format."""
        if self.channels_last:
            return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return model.to(self.device)


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile the network with ``torch.compile``; state dicts are taken from ``network`` itself.

    Raises:
        ConfigError: if torch.compile does not work on this machine. A trivial function is compiled first, so that the
            error appears before training.
    """
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # the compilers' exceptions have no common base class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(f"train.compile: torch.compile does not work on this machine: {reason}") from error
    for module in network.modules():
        if isinstance(module, SyncBatchNorm1d | SyncBatchNorm2d):
            # Collectives stay outside of compiled graphs. Disabled here and not by a decorator at the function: the
            # decorator imports the compiler, which takes a second in every process.
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    return cast(nn.Module, torch.compile(network))


def _probe(x: Tensor) -> Tensor:
    """Compute something trivial that a compiler must handle."""
    return torch.sin(x) + 1
