"""How far two workers drift from one in the first steps of training, by nonlinearity.

    torchrun --nproc-per-node 2 benchmarks/parity.py [--steps 20] [--seeds 3]

Each process trains the shipped experiment as its half of the global batches and, apart, alone on the whole ones, in
the contiguous memory format.
Printed: the largest relative difference of a step's loss, and of a weight relative to the largest entry of its tensor.
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
from mbcl.io.store import LocalStore


def first_steps(world: World, experiment: Experiment, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the first steps, and the weights after them."""
    with tempfile.TemporaryDirectory() as folder:
        learner = Trainer(experiment, world=world, store=LocalStore(folder)).learner
    sampler = experiment.build_sampler()
    plan = sampler.plan(len(learner.images), seed=experiment.seed)
    losses = []
    for step, batch in enumerate(plan.batches[:steps]):
        loss = learner.step(batch, epoch=0, lr=0.01 * (step + 1)).loss
        losses.append(float(collectives.all_reduce_sum(loss, world)))
    return losses, learner.model.state_dict()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = collectives.init_from_env()
    if world.rank == 0:
        print(f"{world.size} workers against one, {options.steps} steps")
        print("encoder  projector  seed  loss     weights")
    for encoder, projector in (("relu", "relu"), ("silu", "relu"), ("silu", "silu")):
        for seed in range(options.seeds):
            content = read_experiment("tune_spaces/digits.yaml")
            content |= {
                "seed": seed,
                "encoder": {"name": "resnet_small", "activation": encoder},
                "projector": {"activation": projector},
                "track": [],
            }
            content["train"]["channels_last"] = False
            experiment = validate(Experiment, content, "benchmark")
            losses, weights = first_steps(world, experiment, options.steps)
            alone_losses, alone = first_steps(World(), experiment, options.steps)
            loss = max(abs(a - b) / abs(b) for a, b in zip(losses, alone_losses, strict=True))
            weight = max(
                float((weights[k] - v).abs().max()) / (float(v.abs().max()) or 1.0)
                for k, v in alone.items()
                if v.is_floating_point()
            )
            if world.rank == 0:
                print(f"{encoder:7}  {projector:9}  {seed:4}  {loss:.1e}  {weight:.1e}", flush=True)
    collectives.finish()


if __name__ == "__main__":
    main()
