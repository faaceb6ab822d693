"""How forward and backward passes are computed: number format, memory format, compiler. Never what is computed.

Losses, plans and metrics are float32 or better whatever is chosen here: models raise their output, objectives and
samplers switch autocast off.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mbcl.config.experiment import Precision, Train
from mbcl.distributed.sync_batchnorm import SyncBatchNorm1d, SyncBatchNorm2d
from mbcl.errors import ConfigError

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """What a forward pass runs under.

    Args:
        device: where.
        precision: ``float32`` or ``float64``, the weights' own; or ``bf16`` or ``fp16`` for autocast to it.
        channels_last: whether images and convolutions lie channels last in memory.
    """

    device: torch.device = torch.device("cpu")
    precision: Precision = "float32"
    channels_last: bool = False

    @staticmethod
    def of(train: Train, device: torch.device) -> Compute:
        """What an experiment trains under."""
        return Compute(device, train.precision, train.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision not in _HALF:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler, which does nothing but in fp16: half of its gradients would be zero without it."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def layout(self, views: Tensor) -> Tensor:
        """Images (B, C, H, W) in the memory format of the model's convolutions."""
        return views.contiguous(memory_format=torch.channels_last) if self.channels_last else views

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, its convolutions in the memory format."""
        if self.channels_last:
            return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return model.to(self.device)


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network through ``torch.compile``; state dictionaries are the ones of the network itself.

    Raises:
        ConfigError: if this machine cannot compile: tried on a trivial function, so that it is known before training.
    """
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # the compilers' errors have no common type
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(f"train.compile: torch.compile does not work on this machine: {reason}") from error
    for module in network.modules():
        if isinstance(module, SyncBatchNorm1d | SyncBatchNorm2d):
            # Collectives stay outside of graphs. Said here and not at the function: it imports the compiler, for a
            # second in every process.
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    return cast(nn.Module, torch.compile(network))


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + 1
