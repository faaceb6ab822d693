"""What planning beside training costs: seconds an epoch of planned batches against those of shuffled ones.

    python benchmarks/overlap.py [--epochs 8] [--repeats 3] [--samplers spectral refined]

The experiment of ``tune_spaces/samplers.yaml`` on the embedded digits with ``embeddings.source: cached``, one training
thread, and with ``planner.overlap: 1`` one planner process beside it. The trainings alternate: shuffle, then each
sampler with overlap 0 and 1, and again. Their first two epochs (fresh embeddings, the planner process starts) are left
out. Printed: seconds of an epoch (median over epochs and repeats), its share of shuffle's, the seconds that training
waited for plans, those that the planner computed, and the age of the embeddings in epochs. A core must be to spare, or
training and planner share one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from statistics import median

import torch

from mbcl.configuration import validate
from mbcl.dist import World
from mbcl.engine import Row, Trainer
from mbcl.engine.records import read_rows
from mbcl.experiment import Experiment, read_experiment
from mbcl.storage import LocalStore

LEFT_OUT = 2
PLANNERS = ("spectral", "kmeans", "refined", "bisection", "gcbs", "strata", "diverse")
"""Samplers whose plans cover the data set, so that embeddings can be cached."""


def rows_of(sampler: dict[str, object], overlap: int, epochs: int) -> list[Row]:
    """The rows of the epochs that count."""
    content = read_experiment("tune_spaces/samplers.yaml")
    content |= {"sampler": sampler, "embeddings": {"source": "cached"}, "planner": {"overlap": overlap}, "track": []}
    content["train"] = {**content["train"], "epochs": LEFT_OUT + epochs, "eval_every": LEFT_OUT + epochs}
    experiment = validate(Experiment, content, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        Trainer(experiment, world=World(), store=store).run()
        return read_rows(store)[LEFT_OUT:-1]  # the last epoch has validation and no plan to make


def main() -> None:
    """Measure and print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=["spectral", "refined"], choices=PLANNERS, metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = [("shuffle", 0), *((name, overlap) for name in options.samplers for overlap in (0, 1))]
    found: dict[tuple[str, int], list[Row]] = {setting: [] for setting in settings}
    for _ in range(options.repeats):
        for name, overlap in settings:
            sampler = {"name": name} | ({"k": 4} if name == "spectral" else {})
            found[name, overlap] += rows_of(sampler, overlap, options.epochs)
    load = os.getloadavg()[0]
    print(f"digits, cached embeddings, {options.repeats} trainings each; load {load:.1f} on {os.cpu_count()} cores")
    print("| sampler | overlap | an epoch | of shuffle | waited | planner | age |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = median(float(row["time/total"] or 0) for row in found["shuffle", 0])
    for (name, overlap), rows in found.items():
        total, wait, plan, age = (
            median(float(row[key] or 0) for row in rows) for key in ("time/total", "time/wait", "time/plan", "plan/age")
        )
        print(
            f"| {name} | {overlap} | {total:.3f} s | {total / base:.3f} | {wait:.3f} s | {plan:.3f} s | {age:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
