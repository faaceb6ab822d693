"""What the age of kept embeddings costs a plan: plan loss from cached against fresh embeddings, in one training.

    python benchmarks/cached_embeddings.py [--epochs 10] [--seeds 5] [--k 4 40]

A training with ``embeddings.source: cached`` runs epoch by epoch. Before each epoch but the first, the sampler plans
twice: on the kept embeddings, as training does, and on fresh ones. Both plans are scored on the fresh embeddings, the
best knowledge of what the coming batches' loss will be. Printed: mean NT-Xent of either plan over that of random
batches (lift), their ratio with a 95 % interval over seeds, and the seconds that embedding takes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from statistics import mean, stdev

import torch
from scipy.stats import t

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.io.store import LocalStore
from mbcl.samplers import quality


def compare(seed: int, epochs: int, sampler: dict[str, object]) -> dict[int, tuple[float, float, float]]:
    """By epoch: the lift of the plan from kept embeddings, from fresh ones, and the seconds of embedding afresh."""
    content = read_experiment("tune_spaces/digits.yaml")
    content |= {"seed": seed, "sampler": sampler, "embeddings": {"source": "cached"}, "track": []}
    content["train"] = {**content["train"], "epochs": epochs}
    experiment = validate(Experiment, content, "benchmark")
    found: dict[int, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(experiment, world=World(), store=LocalStore(folder))
        planner, num_samples = experiment.build_sampler(), len(trainer.learner.images)
        request = trainer.plans.request

        def look(key, shard, sampler, *, ahead=False):
            if key.round == 0 and key.epoch:
                start = time.perf_counter()
                fresh = trainer.source._embed(key)
                seconds = time.perf_counter() - start
                plans = (planner.plan(num_samples, e, seed=seed, epoch=key.epoch) for e in (shard, fresh))
                kept, new = (quality(plan, fresh, seed=seed)["lift"] for plan in plans)
                found[key.epoch] = kept, new, seconds
            request(key, shard, sampler, ahead=ahead)

        trainer.plans.request = look
        trainer.run()
    return found


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean."""
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.3f} [{mean(values) - half:.3f}, {mean(values) + half:.3f}]"


def main() -> None:
    """Measure and print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 40])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"spectral on digits, {options.seeds} seeds; lift over random batches on fresh embeddings")
    print("| k | before epoch | from cached | from fresh | cached / fresh | embedding afresh |")
    print("| --- | --- | --- | --- | --- | --- |")
    for k in options.k:
        runs = [compare(seed, options.epochs, {"name": "spectral", "k": k}) for seed in range(options.seeds)]
        for epoch in (1, 2, options.epochs // 2, options.epochs - 1):
            kept, fresh, seconds = zip(*(run[epoch] for run in runs), strict=True)
            ratio = interval([a / b for a, b in zip(kept, fresh, strict=True)])
            print(
                f"| {k} | {epoch + 1} | {mean(kept):.2f} | {mean(fresh):.2f} | {ratio} | {mean(seconds):.2f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
