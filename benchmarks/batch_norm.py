"""The error of batch norm's variance in float32 by memory format, on a CPU: what channels last costs in exactness.

``python benchmarks/batch_norm.py`` prints the largest relative error over the channels, against float64.
"""

from __future__ import annotations

import torch
from torch import nn

SHAPES = ((128, 16, 28, 28), (256, 16, 28, 28), (256, 64, 32, 32), (256, 4, 112, 112))


def error(x: torch.Tensor, layout: torch.memory_format, threads: int) -> float:
    """Return the largest relative error of the batch variance of (B, C, H, W) float32."""
    torch.set_num_threads(threads)
    layer = nn.BatchNorm2d(x.shape[1], momentum=1.0)
    with torch.no_grad():
        layer(x.contiguous(memory_format=layout))
    exact = x.double().var(dim=(0, 2, 3))
    assert layer.running_var is not None
    return float((layer.running_var.double() / exact - 1).abs().max())


def main() -> None:
    """Print a table."""
    generator = torch.Generator().manual_seed(0)
    print("| B, C, H, W | contiguous | channels last | channels last, 2 threads |\n| --- | --- | --- | --- |")
    for shape in SHAPES:
        x = (torch.randn(shape, generator=generator) + 0.5).relu()
        errors = [error(x, torch.contiguous_format, 1), *(error(x, torch.channels_last, t) for t in (1, 2))]
        print(f"| {', '.join(map(str, shape))} | " + " | ".join(f"{value:.0e}" for value in errors) + " |")


if __name__ == "__main__":
    main()
