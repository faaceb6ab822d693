"""What cached accumulation saves and costs: memory that autograd holds, and seconds of a step, against the whole batch.

    python benchmarks/accumulation.py [--batch-size 64] [--image-size 32] [--chunks 2 4 8]

One process, one thread; each encoder trains the same batch of random images. Memory is what the graph saves, counted
by hooks, without parameters, plus the segments' inputs that cached accumulation keeps. Seconds are the median of three
steps. Errors are the largest of any parameter's gradient, relative to the largest entry of its tensor, in float64.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

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


def whole(encoder: nn.Module, x: Tensor) -> None:
    """A step's gradients at once."""
    loss_of(encoder(x)).backward()


def in_chunks(encoder: nn.Module, x: Tensor, num_chunks: int) -> int:
    """The same chunk by chunk; returns the bytes that were kept between the passes."""
    worker = ChunkedEncoder(encoder, World())
    features = [part.requires_grad_() for part in worker.forward(x.chunk(num_chunks))]
    kept = sum(y.numel() * y.element_size() for segment in worker._segments[1:] for y in segment.inputs)
    loss_of(torch.cat(features)).backward()
    worker.backward([part.grad for part in features])
    return kept


def seconds(function, *arguments) -> float:
    """The median of three calls after one to warm up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    """Measure and print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=["resnet_small", "resnet18"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (2 * options.batch_size, 3, options.image_size, options.image_size)
    x = torch.randn(*shape, generator=generator)
    print(f"B = {options.batch_size} (two views), {options.image_size} x {options.image_size}, one thread")
    print("| encoder | chunks | graph and inputs | of the whole batch's | time of a step | largest error, float64 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.encoders:
        encoder = build(ENCODERS[name], in_channels=3, seed=0).encoder.train()
        held = Held(encoder)
        with held.hooks():
            whole(encoder, x)
        alone = held.peak, seconds(whole, encoder, x)
        print(f"| {name} | whole | {alone[0] / 1e6:.0f} MB | 1 | 1 | - |", flush=True)
        exact = build(ENCODERS[name], in_channels=3, seed=0).encoder.train().double()
        small = x[:: max(1, len(x) // 32)].double()
        whole(exact, small)
        for num_chunks in options.chunks:
            held = Held(encoder)
            with held.hooks():
                kept = in_chunks(encoder, x, num_chunks)
            memory, slower = held.peak + kept, seconds(in_chunks, encoder, x, num_chunks) / alone[1]
            other = build(ENCODERS[name], in_channels=3, seed=0).encoder.train().double()
            in_chunks(other, small, num_chunks)
            pairs = zip(other.parameters(), exact.parameters(), strict=True)
            error = max(relative_error(a.grad, b.grad) for a, b in pairs)
            cells = (name, num_chunks, f"{memory / 1e6:.0f} MB", f"1/{alone[0] / memory:.1f}", f"{slower:.2f}")
            print("| " + " | ".join(map(str, (*cells, f"{error:.0e}"))) + " |", flush=True)


if __name__ == "__main__":
    main()
