"""The command line of ``mbcl plan``. The planner is imported lazily, so that ``--help`` stays fast."""

from __future__ import annotations

import argparse
from typing import Any

from mbcl.cli.parser import option_values


def add_plan(commands: Any) -> None:
    """Add ``plan`` to the commands."""
    plan = commands.add_parser(
        "plan",
        help="plan batches from a file of embeddings and print their quality",
        description="Plan the batches of one epoch from stored embeddings, write the plan, and print its quality. "
        "The plan loss shows how hard the batches are, not how well an encoder will train on them.",
    )
    files = (
        ".npz or .parquet file, or folder that datasets saved, with z1 and z2, (N, D) floats, and optionally indices, "
        "labels, apart and together, one for each row; or two of .npy files and columns PATH:COLUMN of a .parquet file "
        "or folder, z1 and z2"
    )
    plan.option("--embeddings", "FILE", files, nargs="+")
    num_samples = "number of samples, instead of --embeddings, for samplers that need no embeddings"
    plan.option("--num-samples", "N", num_samples, type=int)
    sampler = "a name of `mbcl list samplers`, or a block with parameters: '{name: spectral, k: 4}'"
    plan.option("--sampler", "NAME|BLOCK", sampler, required=True)
    plan.overrides("set a parameter of the sampler, e.g. k=4")
    plan.plugins()
    plan.option("--batch-size", "B", "samples per batch", 32)
    for name in ("seed", "epoch", "round"):
        plan.option(f"--{name}", "N", f"{name} of the plan", 0)
    apart = (
        ".npy file or PATH:COLUMN with an id for each sample: samples of one id share no batch where that is possible"
    )
    plan.option("--apart", "FILE", apart)
    together = ".npy file or PATH:COLUMN with an id for each sample: every batch has samples of one id"
    plan.option("--together", "FILE", together)
    temperature = "temperature of the printed losses (default: the sampler's, or 0.1)"
    plan.option("--temperature", "T", temperature, type=float)
    plan.option("--compare", "FILE", "another plan of the same samples: print the overlap of both")
    plan.flag("--check", "plan a second time; the exit code is 1 if the plans differ")
    plan.flag("--json", "print the quality as JSON")
    plan.flag("--overwrite", "replace an existing plan")
    order = "also write the samples in the order of the batches, as an .npy file of positions"
    plan.option("--order", "FILE", order)
    out = "output file, a name that ends in .npz, or a folder for plan.npz"
    plan.option("--out", "FILE|DIR", out, required=True)
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from mbcl.planning.run import PlanRequest, run

    return run(PlanRequest(**option_values(arguments, "set"), overrides=arguments.set))
