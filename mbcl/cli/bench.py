"""The command line of ``mbcl bench``. What is measured is imported only when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

DATA_SETS = ("mix_0.5", "mix_1", "mix_2", "digits", "fm_pca", "fm_simclr")
SAMPLERS = ("spectral", "kmeans", "refined")
WHOLE = 49_920
"""39 pools of 1,280: what the published planner plans of 50,000 samples."""


def add_bench(commands: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    """Add ``bench`` and what can be measured to the commands.

    Args:
        commands: of the command line.
        run_ray: measures a study on Ray, which nothing in this layer imports.
    """
    bench = commands.add_parser("bench", help="measure parts of mbcl on this machine")
    kinds = bench.add_subparsers(title="what is measured", metavar="WHAT", required=True)
    _add_planner(kinds)
    _add_data(kinds)
    _add_ray(kinds, run_ray)


def _add_planner(kinds: Any) -> None:
    planner = kinds.add_parser(
        "planner",
        help="samplers against the published planner: time and plan loss",
        description="Plan the same random pools with the published planner, written plainly, and with samplers, in one "
        "run on one thread, and print CPU time and plan loss side by side. A higher plan loss is not a better "
        "training: see docs/benchmarks.md.",
    )
    planner.add_argument("--data-sets", metavar="NAME", nargs="+", default=DATA_SETS, help=f"of {', '.join(DATA_SETS)}")
    planner.add_argument(
        "--samplers",
        metavar="SPEC",
        nargs="+",
        default=SAMPLERS,
        help=f"NAME or NAME:KEY=VALUE,KEY=VALUE as `mbcl list samplers` has them (default: {' '.join(SAMPLERS)})",
    )
    planner.add_argument("--seeds", metavar="N", type=int, default=3, help="default: %(default)s")
    planner.add_argument("--batch-size", metavar="B", type=int, default=32, help="default: %(default)s")
    planner.add_argument("--pool", metavar="M", type=int, default=1280, help="samples of a pool (default: %(default)s)")
    planner.add_argument("--pools", metavar="P", type=int, default=3, help="of each data set (default: %(default)s)")
    planner.add_argument(
        "--temperature", metavar="T", type=float, default=0.1, help="of the losses that are reported (%(default)s)"
    )
    planner.add_argument(
        "--whole",
        metavar="N",
        type=int,
        nargs="?",
        const=WHOLE,
        help=f"also plans of N samples as one pool ({WHOLE} if no number is given), of the data sets that have as many",
    )
    planner.add_argument(
        "--growth", metavar="N", type=int, nargs="+", default=[], help="also plans of mix_1 with so many samples"
    )
    planner.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where Fashion-MNIST's four files lie, for fm_pca and fm_simclr (default: where Debian puts them)",
    )
    planner.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the embeddings lie")
    planner.add_argument("--out", metavar="DIR", help="write planner.json there, too")
    planner.add_argument("--overwrite", action="store_true", help="replace a planner.json that is there already")
    planner.set_defaults(run=_planner)


def _planner(arguments: argparse.Namespace) -> int:
    from mbcl.bench.planner import PlannerBenchSettings, bench_planner

    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    bench_planner(PlannerBenchSettings(**settings))
    return 0


def _add_data(kinds: Any) -> None:
    data = kinds.add_parser(
        "data",
        help="augmented views a second, against the usual pipeline of one image at a time",
        description="Make two augmented views of every image, whole batches at once as training does, and one image at "
        "a time with torchvision on Pillow's images in a DataLoader with workers, and print views a second.",
    )
    data.add_argument("--sizes", metavar="S", type=int, nargs="+", default=[32, 64], help="pixels (default: 32 64)")
    data.add_argument("--num", metavar="N", type=int, default=2048, help="images (default: %(default)s)")
    data.add_argument("--batch-size", metavar="B", type=int, default=256, help="default: %(default)s")
    data.add_argument("--workers", metavar="W", type=int, nargs="+", default=[0, 2], help="default: 0 2")
    data.add_argument("--repeats", metavar="R", type=int, default=3, help="the best counts (default: %(default)s)")
    data.add_argument("--threads", metavar="T", type=int, default=1, help="torch's (default: %(default)s)")
    data.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where whole batches are made")
    data.add_argument("--out", metavar="DIR", help="write data.json there, too")
    data.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> int:
    from mbcl.bench.data import DataBenchSettings, bench_data

    bench_data(DataBenchSettings(**{key: value for key, value in vars(arguments).items() if key != "run"}))
    return 0


def _add_ray(kinds: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    ray = kinds.add_parser(
        "ray",
        help="what Ray costs a trial: seconds to the first step, and beyond training",
        description="Run a study of tiny trials (one epoch on 300 digits) on a local Ray, one trial at a time, and "
        "print where the seconds went. Some ten seconds a trial.",
    )
    ray.add_argument("--trials", metavar="N", type=int, default=12, help="default: %(default)s")
    ray.add_argument(
        "--sampler",
        choices=("shuffle", "spectral"),
        default="shuffle",
        help="spectral starts a planner, too (%(default)s)",
    )
    ray.add_argument("--out", metavar="DIR", help="write ray.json there, too")
    ray.add_argument("--overwrite", action="store_true", help="replace a ray.json that is there already")
    ray.set_defaults(run=run_ray)
