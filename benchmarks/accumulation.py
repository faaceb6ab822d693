"""What cached accumulation saves and costs: peak memory, and seconds of a step, against the whole batch.

    python benchmarks/accumulation.py [--batch-size 64] [--image-size 32] [--chunks 2 4 8] [--device cuda]

One process, one thread; each encoder trains the same batch of random images. On a CPU memory is what the graph saves,
counted by hooks, without parameters, plus the segments' inputs that cached accumulation stores. On a GPU it is the peak
of torch's allocations above those before the step, gradients included. Seconds are the median of three steps. Errors
are the largest of any parameter's gradient, relative to the largest entry of its tensor, in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mbcl.distributed.collectives import World
from mbcl.engine.grad_cache import ChunkedEncoder
from mbcl.engine.gradient_parity import relative_error
from mbcl.functional import nt_xent
from mbcl.models import build

ENCODERS = {
    "resnet_small": {"name": "resnet_small"},
    "resnet18": {"name": "resnet18", "stem": "small"},
    "resnet50": {"name": "resnet50"},
    "vit_b_16": {"name": "vit_b_16"},
}


class Held:
    """Bytes that autograd holds now, and at most."""

    def __init__(self, encoder: nn.Module) -> None:
        self.now = self.peak = 0
        self._parameters = {p.data_ptr() for p in encoder.parameters()}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Under these, what autograd saves is counted."""
        held = self

        class Box:
            def __init__(self, x: Tensor) -> None:
                self.x = x
                self.size = 0 if x.data_ptr() in held._parameters else x.numel() * x.element_size()
                held.now += self.size
                held.peak = max(held.peak, held.now)

            def __del__(self) -> None:
                held.now -= self.size

        return torch.autograd.graph.saved_tensors_hooks(lambda x: Box(x.detach()), lambda box: box.x)


def loss_of(features: Tensor) -> Tensor:
    """NT-Xent between the halves, on the features themselves."""
    return nt_xent(*features.chunk(2), temperature=0.1)


def whole(encoder: nn.Module, x: Tensor) -> int:
    """A step's gradients at once; returns 0, since nothing is stored between passes."""
    loss_of(encoder(x)).backward()
    return 0


def in_chunks(encoder: nn.Module, x: Tensor, num_chunks: int) -> int:
    """The same chunk by chunk; returns the bytes that were stored between the passes."""
    worker = ChunkedEncoder(encoder, World(device=x.device))
    features = [part.requires_grad_() for part in worker.forward(x.chunk(num_chunks))]
    stored = sum(y.numel() * y.element_size() for segment in worker._segments[1:] for y in segment.inputs)
    loss_of(torch.cat(features)).backward()
    worker.backward([part.grad for part in features])
    return stored


def peak_of(step: Callable[..., int], encoder: nn.Module, x: Tensor, *arguments: int) -> int:
    """The peak of a step's memory in bytes."""
    if x.device.type == "cpu":
        held = Held(encoder)
        with held.hooks():
            stored = step(encoder, x, *arguments)
        return held.peak + stored
    encoder.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(encoder, x, *arguments)
    return torch.cuda.max_memory_allocated() - before


def seconds(step: Callable[..., int], encoder: nn.Module, x: Tensor, *arguments: int) -> float:
    """The median of three calls after one to warm up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step(encoder, x, *arguments)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def measure(
    name: str, *, batch_size: int, image_size: int, chunks: Sequence[int], device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yield a row for the whole batch and one for each number of chunks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * batch_size, 3, image_size, image_size, generator=generator).to(device)
    encoder = build(ENCODERS[name], in_channels=3, seed=0).encoder.train().to(device)
    first = peak_of(whole, encoder, x)
    at_once = peak_of(whole, encoder, x) if device == "cuda" else first  # the first one counts the libraries' buffers
    alone = seconds(whole, encoder, x)
    yield {"encoder": name, "chunks": None, "bytes": at_once, "ratio": 1.0, "seconds": alone, "slower": 1.0}
    exact = build(ENCODERS[name], in_channels=3, seed=0).encoder.train().double().to(device)
    small = x[:: max(1, len(x) // 32)].double()
    whole(exact, small)
    for num_chunks in chunks:
        memory = peak_of(in_chunks, encoder, x, num_chunks)
        took = seconds(in_chunks, encoder, x, num_chunks)
        other = build(ENCODERS[name], in_channels=3, seed=0).encoder.train().double().to(device)
        in_chunks(other, small, num_chunks)
        pairs = zip(other.parameters(), exact.parameters(), strict=True)
        error = max(relative_error(a.grad, b.grad) for a, b in pairs)
        row = {"encoder": name, "chunks": num_chunks, "bytes": memory, "ratio": at_once / memory, "seconds": took}
        yield row | {"slower": took / alone, "error": float(error)}


def main() -> None:
    """Measure and print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=["resnet_small", "resnet18"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.image_size
    print(f"B = {options.batch_size} (two views), {size} x {size}, one thread, {options.device}")
    print("| encoder | chunks | memory | of the whole batch's | time of a step | largest error, float64 |")
    print("| --- | --- | --- | --- | --- | --- |")
    shape = {"batch_size": options.batch_size, "image_size": size, "chunks": options.chunks, "device": options.device}
    for name in options.encoders:
        for row in measure(name, **shape):
            memory = f"{row['bytes'] / 1e6:.0f} MB"
            if row["chunks"] is None:
                print(f"| {name} | whole | {memory} | 1 | 1 | - |", flush=True)
                continue
            cells = (
                name,
                row["chunks"],
                memory,
                f"1/{row['ratio']:.1f}",
                f"{row['slower']:.2f}",
                f"{row['error']:.0e}",
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
