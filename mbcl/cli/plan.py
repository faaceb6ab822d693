"""The command line of ``mbcl plan``. The planner is imported lazily, so that ``--help`` stays fast."""

from __future__ import annotations

import argparse
from typing import Any


def add_plan(commands: Any) -> None:
    """Add ``plan`` to the commands."""
    plan = commands.add_parser(
        "plan",
        help="plan batches from a file of embeddings and print their quality",
        description="Plan the batches of one epoch from stored embeddings, write the plan, and print its quality. "
        "The plan loss shows how hard the batches are, not how well an encoder will train on them.",
    )
    plan.add_argument(
        "--embeddings",
        metavar="FILE",
        help=".npz file with z1 and z2, (N, D) floats, and optionally indices and labels, one for each row",
    )
    plan.add_argument(
        "--num-samples",
        metavar="N",
        type=int,
        help="number of samples, instead of --embeddings, for samplers that need no embeddings",
    )
    plan.add_argument(
        "--sampler",
        metavar="NAME|BLOCK",
        required=True,
        help="a name of `mbcl list samplers`, or a block with parameters: '{name: spectral, k: 4}'",
    )
    plan.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="set a parameter of the sampler, e.g. k=4"
    )
    plan.add_argument(
        "--batch-size", metavar="B", type=int, default=32, help="samples per batch (default: %(default)s)"
    )
    for name in ("seed", "epoch", "round"):
        plan.add_argument(
            f"--{name}", metavar="N", type=int, default=0, help=f"{name} of the plan (default: %(default)s)"
        )
    plan.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        help="temperature of the printed losses (default: the sampler's, or 0.1)",
    )
    plan.add_argument("--compare", metavar="FILE", help="another plan of the same samples: print the overlap of both")
    plan.add_argument("--check", action="store_true", help="plan a second time; the exit code is 1 if the plans differ")
    plan.add_argument("--json", action="store_true", help="print the quality as JSON")
    plan.add_argument("--overwrite", action="store_true", help="replace an existing plan")
    plan.add_argument(
        "--out",
        metavar="FILE|DIR",
        required=True,
        help="output file, a name that ends in .npz, or a folder for plan.npz",
    )
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from mbcl.planning.run import PlanRequest, run

    settings = {key: value for key, value in vars(arguments).items() if key not in ("run", "set")}
    return run(PlanRequest(**settings, overrides=arguments.set))
