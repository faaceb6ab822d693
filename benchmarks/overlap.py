"""What planning beside training costs: seconds of an epoch beside which a plan is made against those of one without.

    python benchmarks/overlap.py [--pairs 20] [--samplers spectral refined] [--encoder resnet_small]

The experiment of ``tune_spaces/digits.yaml`` on the embedded digits with ``embeddings.source: cached``,
``planner.overlap: 1`` and one training thread. With ``planner.every: 2`` one training does both in turn: in every other
epoch embeddings are collected, handed over and planned by a process beside it; the epochs between train on the same
batches again, which is all that ``shuffle`` does, too. Neighbours in time are compared, so that what else the machine
does and how it is clocked touches both alike: single trainings differ by a tenth, far more than what is looked for.
A core must be to spare, or training and planner share one.

Printed: seconds of an epoch without and with planning (medians), their ratio (geometric mean over pairs of neighbours,
with its 95 % interval), seconds that training waited for plans and that the planner computed, and for comparison those
of an epoch that waits (``overlap: 0``, seconds of training without and with).
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from statistics import median

import torch

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.distributed.collectives import World
from mbcl.engine import Row, Trainer
from mbcl.engine.metrics_log import read_rows
from mbcl.io.store import LocalStore
from mbcl.study.statistics import estimate

LEFT_OUT = 4
"""Epochs before those that count: fresh embeddings are made, the planner process starts, compiled code is loaded."""
PLANNERS = ("spectral", "kmeans", "refined", "bisection", "gcbs", "strata", "diverse")
"""Samplers whose plans cover the data set, so that embeddings can be cached."""


def rows_of(name: str, overlap: int, pairs: int, encoder: str) -> list[Row]:
    """The rows of the epochs that count, in pairs: of an overlapped training the first of each has no planning."""
    content = read_experiment("tune_spaces/digits.yaml")
    sampler = {"name": name} | ({"k": 4} if name == "spectral" else {})
    content |= {"sampler": sampler, "encoder": {"name": encoder}, "embeddings": {"source": "cached"}, "track": []}
    content["planner"] = {"overlap": overlap, "every": 2}
    # The last epoch has validation and no plan to make.
    epochs = LEFT_OUT + 2 * pairs + 1
    content["train"] = {**content["train"], "epochs": epochs, "eval_every": epochs}
    experiment = validate(Experiment, content, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        Trainer(experiment, world=World(), store=store).run()
        return read_rows(store)[LEFT_OUT:-1]


def seconds(rows: list[Row], key: str = "time/total") -> list[float]:
    """A column."""
    return [float(row[key] or 0) for row in rows]


def ratio(without: list[Row], with_: list[Row]) -> str:
    """Seconds of an epoch with planning over those of its neighbour without."""
    found = estimate([math.log(b / a) for a, b in zip(seconds(without), seconds(with_), strict=True)])
    assert found is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    return f"{math.exp(found.mean):.3f} [{math.exp(found.ci_low):.3f}, {math.exp(found.ci_high):.3f}]"


def main() -> None:
    """Measure and print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="of epochs, at least 2")
    parser.add_argument("--samplers", nargs="+", default=["spectral", "refined"], choices=PLANNERS, metavar="NAME")
    parser.add_argument("--encoder", default="resnet_small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| encoder | sampler | overlap | an epoch | one with planning | ratio | waited | planner | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.samplers:
        for overlap in (0, 1):
            rows = rows_of(name, overlap, options.pairs, options.encoder)
            # With overlap the epoch before a planned one has the planner beside it; without, the planned one waits.
            first, second = rows[::2], rows[1::2]
            without, with_ = (first, second) if overlap else (second, first)
            waited = median(
                a + b for a, b in zip(seconds(first, "time/wait"), seconds(second, "time/wait"), strict=True)
            )
            print(
                f"| {options.encoder} | {name} | {overlap} | {median(seconds(without)):.3f} s | "
                f"{median(seconds(with_)):.3f} s | {ratio(without, with_)} | {waited:.3f} s | "
                f"{median(seconds(first, 'time/plan')):.3f} s | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
