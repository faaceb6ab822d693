"""The synthetic study against a plain loop as published, per update and in one run; and a study of 4,096 samples.

    python benchmarks/synthetic.py

The plain loop takes one seed and one batch after the other, with autograd and torch's SGD; batches of a subset loss or
of a search one by one; spectral plans by the published planner with 10 restarts (mbcl/bench/published.py).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from mbcl.bench.published import plan_published
from mbcl.synthetic.losses import starting_points
from mbcl.synthetic.settings import Settings
from mbcl.synthetic.study import run

METHODS = ("fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral")
LARGE = ("shuffle", "osgd", "spectral", "refined")


def plain_loss(x_u: Tensor, x_v: Tensor) -> Tensor:
    """The CLIP loss of a batch without temperature."""
    u, v = torch.nn.functional.normalize(x_u, dim=1), torch.nn.functional.normalize(x_v, dim=1)
    z = u @ v.T
    labels = torch.arange(len(z))
    return torch.nn.functional.cross_entropy(z, labels) + torch.nn.functional.cross_entropy(z.T, labels)


class Plain:
    """One method with one seed."""

    def __init__(self, method: str, n: int, dim: int, size: int, seed: int) -> None:
        self.method, self.size, self.seed = method, size, seed
        self.x_u, self.x_v = (torch.nn.Parameter(x.float()) for x in starting_points(n, dim, seed))
        self.optimizer = torch.optim.SGD([self.x_u, self.x_v], lr=0.5)
        self.rng = np.random.default_rng(seed)
        self.fixed = self.rng.permutation(n).reshape(-1, size)
        self.all = list(itertools.combinations(range(n), size))

    def batch_loss(self, batch: object) -> Tensor:
        """The loss of one batch."""
        rows = torch.as_tensor(np.asarray(batch))
        return plain_loss(self.x_u[rows], self.x_v[rows])

    def hardest(self) -> object:
        """The first batch of the highest loss."""
        highest, found = -1.0, self.all[0]
        with torch.no_grad():
            for batch in self.all:
                loss = float(self.batch_loss(batch))
                if loss > highest:
                    highest, found = loss, batch
        return found

    def losses(self, step: int) -> Iterator[Callable[[], Tensor]]:
        """What every update of a step minimises."""
        n = len(self.x_u)
        if self.method == "full":
            yield lambda: plain_loss(self.x_u, self.x_v)
        elif self.method == "all_batches":
            yield lambda: sum((self.batch_loss(batch) for batch in self.all), torch.zeros(())) / len(self.all)
        elif self.method == "osgd_exhaustive":
            for _ in range(n // self.size):
                yield lambda: self.batch_loss(self.hardest())
        else:
            plan = self.fixed
            if self.method == "shuffle":
                plan = self.rng.permutation(n).reshape(-1, self.size)
            if self.method == "spectral":
                views = (x.detach().numpy() for x in (self.x_u, self.x_v))
                plan, _ = plan_published(*views, batch_size=self.size, temperature=1.0, seed=step, restarts=10)
            for batch in plan:
                yield lambda batch=batch: self.batch_loss(batch)

    def step(self, step: int) -> int:
        """One step; the updates that it took."""
        updates = 0
        for loss in self.losses(step):
            self.optimizer.zero_grad()
            loss().backward()
            self.optimizer.step()
            updates += 1
        return updates


def seconds_of_plain(method: str, settings: Settings, steps: int) -> tuple[float, int]:
    """Seconds and updates of some steps of every seed."""
    runs = [Plain(method, settings.n, settings.dim, settings.batch_sizes[0], seed) for seed in settings.seeds]
    for plain in runs:
        plain.step(0)
    start = time.perf_counter()
    updates = sum(plain.step(1 + step) for plain in runs for step in range(steps))
    return time.perf_counter() - start, updates


def main() -> None:
    """Measure and print tables for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the study (default: %(default)s)")
    parser.add_argument("--plain-steps", type=int, default=10, help="of the plain loop (default: %(default)s)")
    parser.add_argument("--large-steps", type=int, default=20, help="of 4,096 samples (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(steps=arguments.steps, samplers=METHODS)
    run(Settings(steps=3, samplers=METHODS))  # compiled code is loaded
    print("| method | plain, µs an update | mbcl, µs an update | ratio |")
    print("| --- | --- | --- | --- |")
    plain_total = 0.0
    for method in METHODS:
        seconds, updates = seconds_of_plain(method, settings, arguments.plain_steps)
        plain_total += seconds / arguments.plain_steps
        start = time.perf_counter()
        alone = run(Settings(steps=arguments.steps // 5, samplers=(method,)))
        here = (time.perf_counter() - start) / (int(alone.curves[0].total_updates) * len(settings.seeds))
        print(f"| {method} alone | {seconds / updates * 1e6:.0f} | {here * 1e6:.1f} | {seconds / updates / here:.0f} |")
    start = time.perf_counter()
    outcome = run(settings)
    seconds = time.perf_counter() - start
    updates = sum(curve.total_updates for curve in outcome.curves) * len(settings.seeds)
    plain = plain_total * arguments.steps / updates
    print(
        f"| all, {updates:,} updates in {seconds:.1f} s | {plain * 1e6:.0f} | {seconds / updates * 1e6:.1f} | ", end=""
    )
    print(f"{plain / (seconds / updates):.0f} |\n")
    print(f"4,096 samples in 64 dimensions, batches of 64, {arguments.large_steps} steps of 64 updates, one seed:\n")
    print("| method | seconds |")
    print("| --- | --- |")
    for method in LARGE:
        start = time.perf_counter()
        steps = arguments.large_steps
        run(Settings(n=4096, dim=64, batch_sizes=(64,), steps=steps, log_every=steps, seeds=(0,), samplers=(method,)))
        print(f"| {method} | {time.perf_counter() - start:.1f} |", flush=True)


if __name__ == "__main__":
    main()
