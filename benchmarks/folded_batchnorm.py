"""Processor time of a forward pass in evaluation mode, with batch norms folded into convolutions and without.

python benchmarks/folded_batchnorm.py

``torch.fx.experimental.optimization.fuse`` folds them. Both models take the same batch in turn, on one thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from mbcl.models import build

CASES: Sequence[tuple[dict[str, Any], int, int, int]] = (
    ({"name": "resnet_small"}, 1, 28, 167),
    ({"name": "resnet18", "stem": "small"}, 3, 32, 128),
)
"""The encoder, and channels, side and number of the images: a forward pass of several draws takes as many."""
REPEATS = 11


def seconds(models: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Return the median of the processor seconds of each model's pass; they take turns."""
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(REPEATS):
        for model, of_model in zip(models, taken, strict=True):
            start = time.process_time()
            model(x)
            of_model.append(time.process_time() - start)
    return [median(of_model) for of_model in taken]


def randomise(model: nn.Module) -> None:
    """Give batch norms statistics, scales and shifts as of a trained model."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in ((layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2.0)):
                assert tensor is not None
                tensor.uniform_(low, high)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.5, 0.5)


@torch.no_grad()
def main() -> None:
    """Print a line for each encoder and memory format."""
    torch.set_num_threads(1)
    for encoder, channels, side, number in CASES:
        for memory_format in (torch.channels_last, torch.contiguous_format):
            model = build(encoder, in_channels=channels, seed=0).eval()
            randomise(model)
            folded = copy.deepcopy(model)
            folded.encoder = fuse(folded.encoder)
            x = torch.randn(number, channels, side, side).contiguous(memory_format=memory_format)
            models = [each.to(memory_format=memory_format) for each in (model, folded)]
            plain, other = seconds(models, x)
            difference = float((model(x) - folded(x)).abs().max() / model(x).abs().max())
            print(
                f"{encoder['name']}, {memory_format}: {1000 * plain:.1f} ms, folded {1000 * other:.1f} ms "
                f"({other / plain - 1:+.0%}), relative difference {difference:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
