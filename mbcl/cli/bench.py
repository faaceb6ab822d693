"""The command line of ``mbcl bench``. The benchmarks are imported lazily, so that ``--help`` stays fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

DATA_SETS = ("mix_0.5", "mix_1", "mix_2", "digits", "fm_pca", "fm_simclr")
SAMPLERS = ("spectral", "kmeans", "refined")
WHOLE = 49_920
"""39 pools of 1,280: the part of 50,000 samples that the published planner plans."""


def add_bench(commands: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    """Add ``bench`` with its benchmarks to the commands.

    Args:
        commands: argparse's subparsers.
        run_ray: measures a study on Ray. The caller provides it, because this layer must not import Ray.
    """
    bench = commands.add_parser("bench", help="measure parts of mbcl on this machine")
    kinds = bench.add_subparsers(title="benchmarks", metavar="WHAT", required=True)
    _add_planner(kinds)
    _add_data(kinds)
    _add_ray(kinds, run_ray)


def _add_planner(kinds: Any) -> None:
    planner = kinds.add_parser(
        "planner",
        help="compare samplers with the published planner: time and plan loss",
        description="Plan the same random pools with a plain implementation of the published planner and with "
        "samplers, in one run on one thread, and print CPU time and plan loss side by side. A higher plan loss does "
        "not mean a better training: see docs/benchmarks.md.",
    )
    planner.add_argument(
        "--data-sets", metavar="NAME", nargs="+", default=DATA_SETS, help=f"default: all of {', '.join(DATA_SETS)}"
    )
    planner.add_argument(
        "--samplers",
        metavar="SPEC",
        nargs="+",
        default=SAMPLERS,
        help=f"NAME or NAME:KEY=VALUE,KEY=VALUE, see `mbcl list samplers` (default: {' '.join(SAMPLERS)})",
    )
    planner.add_argument("--seeds", metavar="N", type=int, default=3, help="number of seeds (default: %(default)s)")
    planner.add_argument(
        "--batch-size", metavar="B", type=int, default=32, help="samples per batch (default: %(default)s)"
    )
    planner.add_argument("--pool", metavar="M", type=int, default=1280, help="samples per pool (default: %(default)s)")
    planner.add_argument(
        "--pools", metavar="P", type=int, default=3, help="pools of each data set (default: %(default)s)"
    )
    planner.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.1,
        help="temperature of the reported losses (default: %(default)s)",
    )
    planner.add_argument(
        "--whole",
        metavar="N",
        type=int,
        nargs="?",
        const=WHOLE,
        help=f"also plan N samples as one pool ({WHOLE} if no number is given), for the data sets that have so many",
    )
    planner.add_argument(
        "--growth", metavar="N", type=int, nargs="+", default=[], help="also plan mix_1 with these numbers of samples"
    )
    planner.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of Fashion-MNIST's four files, for fm_pca and fm_simclr (default: where Debian installs them)",
    )
    planner.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device of the embeddings (default: %(default)s)"
    )
    planner.add_argument("--out", metavar="DIR", help="also write planner.json to this folder")
    planner.add_argument("--overwrite", action="store_true", help="replace an existing planner.json")
    planner.set_defaults(run=_planner)


def _planner(arguments: argparse.Namespace) -> int:
    from mbcl.bench.planner import PlannerBenchSettings, bench_planner

    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    bench_planner(PlannerBenchSettings(**settings))
    return 0


def _add_data(kinds: Any) -> None:
    data = kinds.add_parser(
        "data",
        help="compare augmented views per second with the usual pipeline of one image at a time",
        description="Make two augmented views of every image in two ways: whole batches at once, as training does, and "
        "one image at a time with torchvision on Pillow images in a DataLoader with workers. Print views per second.",
    )
    data.add_argument(
        "--sizes", metavar="S", type=int, nargs="+", default=[32, 64], help="image sizes in pixels (default: 32 64)"
    )
    data.add_argument("--num", metavar="N", type=int, default=2048, help="number of images (default: %(default)s)")
    data.add_argument(
        "--batch-size", metavar="B", type=int, default=256, help="images per batch (default: %(default)s)"
    )
    data.add_argument(
        "--workers",
        metavar="W",
        type=int,
        nargs="+",
        default=[0, 2],
        help="numbers of DataLoader workers (default: 0 2)",
    )
    data.add_argument(
        "--repeats", metavar="R", type=int, default=3, help="repeats; the best one counts (default: %(default)s)"
    )
    data.add_argument("--threads", metavar="T", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    data.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device of the whole batches (default: %(default)s)"
    )
    data.add_argument("--out", metavar="DIR", help="also write data.json to this folder")
    data.set_defaults(run=_data)


def _data(arguments: argparse.Namespace) -> int:
    from mbcl.bench.data import DataBenchSettings, bench_data

    bench_data(DataBenchSettings(**{key: value for key, value in vars(arguments).items() if key != "run"}))
    return 0


def _add_ray(kinds: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    ray = kinds.add_parser(
        "ray",
        help="measure Ray's overhead per trial: seconds to the first step, and beyond training",
        description="Run a study of tiny trials (one epoch on 300 digits) on a local Ray, one trial at a time, and "
        "print the seconds of each stage. Takes some ten seconds per trial.",
    )
    ray.add_argument("--trials", metavar="N", type=int, default=12, help="number of trials (default: %(default)s)")
    ray.add_argument(
        "--sampler",
        choices=("shuffle", "spectral"),
        default="shuffle",
        help="spectral also starts a planner (default: %(default)s)",
    )
    ray.add_argument("--out", metavar="DIR", help="also write ray.json to this folder")
    ray.add_argument("--overwrite", action="store_true", help="replace an existing ray.json")
    ray.set_defaults(run=run_ray)
