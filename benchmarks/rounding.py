"""How a last bit grows in training, by objective: two workers against one on the shipped experiment, in float32.

    torchrun --nproc-per-node 2 benchmarks/rounding.py

Each process trains its half of the global batches and, apart, alone the whole ones, with the rate rising as in warm-up.
Printed after some steps: the largest difference of a weight, relative to the largest weight of its tensor.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine.gradient_parity import relative_error
from mbcl.io.store import LocalStore

STEPS = (2, 6, 11, 20)
OBJECTIVES = (
    {"name": "simclr"},
    {"name": "clip"},
    {"name": "dcl"},
    {"name": "sogclr"},
    {"name": "hcl"},
    {"name": "hcl", "temperature": 0.5},
)


def weights_after(world: World, objective: dict[str, object]) -> list[dict[str, torch.Tensor]]:
    """The parameters after each of ``STEPS``."""
    content = read_experiment("tune_spaces/digits.yaml") | {"objective": objective, "track": []}
    content["train"]["channels_last"] = False
    experiment = validate(Experiment, content, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        learner = Trainer(experiment, world=world, store=LocalStore(folder)).learner
    found = []
    plan = experiment.build_sampler().plan(len(learner.images), seed=experiment.seed)
    for step, batch in enumerate(plan.batches[: STEPS[-1]], 1):
        learner.step(batch, epoch=0, lr=0.01 * step)
        if step in STEPS:
            found.append({name: p.detach().clone() for name, p in learner.model.named_parameters()})
    return found


def main() -> None:
    """Measure and print a table for the documents."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    world = collectives.init_from_env()
    if world.rank == 0:
        print("| objective | " + " | ".join(f"{step} steps" for step in STEPS) + " |")
        print("| --- " * (len(STEPS) + 1) + "|")
    for objective in OBJECTIVES:
        pairs = zip(weights_after(world, objective), weights_after(World(), objective), strict=True)
        errors = [max(relative_error(found[name], x) for name, x in alone.items()) for found, alone in pairs]
        if world.rank == 0:
            label = ", ".join(str(value) for value in objective.values())
            print(f"| {label} | " + " | ".join(f"{error:.0e}" for error in errors) + " |", flush=True)
    collectives.finish()


if __name__ == "__main__":
    main()
