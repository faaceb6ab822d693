"""The command line of ``mbcl plan``. What plans is imported only when it runs."""

from __future__ import annotations

import argparse
from typing import Any


def add_plan(commands: Any) -> None:
    """Add ``plan`` to the commands."""
    plan = commands.add_parser(
        "plan",
        help="plan batches from a file of embeddings, and say how good they are",
        description="Plan the batches of one epoch from stored embeddings, write them, and print their quality. Plan "
        "loss says how hard the batches are, not how well an encoder will train on them.",
    )
    plan.add_argument(
        "--embeddings",
        metavar="FILE",
        help=".npz with z1 and z2, (N, D) floats, and optionally indices and labels, one for each row",
    )
    plan.add_argument(
        "--num-samples", metavar="N", type=int, help="instead of --embeddings, for samplers that need none"
    )
    plan.add_argument(
        "--sampler",
        metavar="NAME|BLOCK",
        required=True,
        help="as `mbcl list samplers` has them, or a block with parameters: '{name: spectral, k: 4}'",
    )
    plan.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a parameter of the sampler, e.g. k=4"
    )
    plan.add_argument("--batch-size", metavar="B", type=int, default=32, help="default: %(default)s")
    for name in ("seed", "epoch", "round"):
        plan.add_argument(f"--{name}", metavar="N", type=int, default=0, help="default: %(default)s")
    plan.add_argument(
        "--temperature", metavar="T", type=float, help="of the losses that are printed (default: the sampler's, or 0.1)"
    )
    plan.add_argument("--compare", metavar="FILE", help="another plan of the same samples: print what they share")
    plan.add_argument(
        "--check", action="store_true", help="plan a second time; exit code 1 unless the plan is the same"
    )
    plan.add_argument("--json", action="store_true", help="print the quality as JSON")
    plan.add_argument("--overwrite", action="store_true", help="replace a plan that is there already")
    plan.add_argument(
        "--out", metavar="FILE|DIR", required=True, help="the plan: a name that ends in .npz, or DIR/plan.npz"
    )
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from mbcl.planning.run import PlanRequest, run

    settings = {key: value for key, value in vars(arguments).items() if key not in ("run", "set")}
    return run(PlanRequest(**settings, overrides=arguments.set))
