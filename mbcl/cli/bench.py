"""The command line of ``mbcl bench``. The benchmarks are imported lazily, so that ``--help`` stays fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from mbcl.cli.parser import option_values

DATA_SETS = ("mix_0.5", "mix_1", "mix_2", "digits", "fm_pca", "fm_simclr")
SAMPLERS = ("spectral", "kmeans", "refined")
WHOLE = 49_920
"""39 pools of 1,280: the part of 50,000 samples that the published planner plans."""
LADDER = ("ceiling", "shuffle", "planned", "usual", "lightly")
LADDER_SAMPLERS = ("osgd", "spectral", "refined")


def add_bench(commands: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    """Add ``bench`` with its benchmarks. ``run_ray`` measures a study on Ray, which this layer must not import."""
    bench = commands.add_parser("bench", help="measure parts of mbcl on this machine")
    kinds = bench.add_subparsers(title="benchmarks", metavar="WHAT", required=True)
    _add_planner(kinds)
    _add_data(kinds)
    _add_train(kinds)
    _add_ray(kinds, run_ray)


def _add_planner(kinds: Any) -> None:
    planner = kinds.add_parser(
        "planner",
        help="compare samplers with the published planner: time and plan loss",
        description="Plan the same random pools with a plain implementation of the published planner and with "
        "samplers, in one run on one thread, and print CPU time and plan loss side by side. A higher plan loss does "
        "not mean a better training: see docs/benchmarks.md.",
    )
    planner.option("--data-sets", "NAME", f"default: all of {', '.join(DATA_SETS)}", nargs="+")
    groups = "apart and together take `labels`, or the samples of a random group"
    spec = f"NAME or NAME:KEY=VALUE,KEY=VALUE, see `mbcl list samplers`; {groups} (default: {' '.join(SAMPLERS)})"
    planner.option("--samplers", "SPEC", spec, nargs="+")
    planner.plugins()
    planner.option("--seeds", "N", "number of seeds", 3)
    planner.option("--batch-size", "B", "samples per batch", 32)
    planner.option("--pool", "M", "samples per pool", 1280)
    planner.option("--pools", "P", "pools of each data set", 3)
    planner.option("--temperature", "T", "temperature of the reported losses", 0.1)
    whole = f"also plan N samples as one pool ({WHOLE} if no number is given), for the data sets that have so many"
    planner.option("--whole", "N", whole, type=int, nargs="?", const=WHOLE)
    planner.option("--growth", "N", "also plan mix_1 with these numbers of samples", type=int, nargs="+")
    where = "folder of Fashion-MNIST's four files, for fm_pca and fm_simclr (default: where Debian installs them)"
    planner.option("--data-dir", "DIR", where)
    planner.option("--device", None, "device of the embeddings", "cpu", choices=("cpu", "cuda"))
    planner.option("--out", "DIR", "also write planner.json to this folder")
    planner.flag("--overwrite", "replace an existing planner.json")
    planner.set_defaults(data_sets=DATA_SETS, samplers=SAMPLERS, growth=[], run=_planner)


def _planner(arguments: argparse.Namespace) -> int:
    from mbcl.bench.planner import bench_planner
    from mbcl.bench.settings import PlannerBenchSettings

    bench_planner(PlannerBenchSettings(**option_values(arguments)))
    return 0


def _add_data(kinds: Any) -> None:
    data = kinds.add_parser(
        "data",
        help="compare augmented views per second with the usual pipeline of one image at a time",
        description="Make two augmented views of every image in two ways: whole batches at once, as training does, and "
        "one image at a time with torchvision on Pillow images in a DataLoader with workers. Print views per second.",
    )
    data.option("--sizes", "S", "image sizes in pixels (default: 32 64)", type=int, nargs="+")
    data.option("--num", "N", "number of images", 2048)
    data.option("--batch-size", "B", "images per batch", 256)
    data.option("--workers", "W", "numbers of DataLoader workers (default: 0 2)", type=int, nargs="+")
    data.option("--repeats", "R", "repeats; the best one counts", 3)
    data.option("--threads", "T", "CPU threads of torch", 1)
    data.option("--device", None, "device of the whole batches", "cpu", choices=("cpu", "cuda"))
    data.option("--out", "DIR", "also write data.json to this folder")
    data.set_defaults(sizes=[32, 64], workers=[0, 2], run=_data)


def _data(arguments: argparse.Namespace) -> int:
    from mbcl.bench.data import DataBenchSettings, bench_data

    bench_data(DataBenchSettings(**option_values(arguments)))
    return 0


def _add_train(kinds: Any) -> None:
    train = kinds.add_parser(
        "train",
        help="compare trainings with their ceiling, the same steps on a batch in memory, and with the usual pipeline",
        description="Train the same model on random images in several ways, each run in a process of its own: steps on "
        "one batch in memory (the ceiling), mbcl's trainer with and without planning, a DataLoader with torchvision's "
        "transforms of one image at a time, and lightly's loop if it is installed. Print images per second, seconds by "
        "stage, peak memory, and the ratio to the best ceiling. See docs/benchmarks.md.",
    )
    train.option("--encoder", "SPEC", "NAME or NAME:KEY=VALUE, such as resnet18:stem=small", "resnet_small")
    train.option("--image-size", "S", "pixels a side", 32)
    train.option("--batch-size", "B", "samples per batch", 64)
    train.option("--samples", "N", "samples of an epoch", 512)
    train.option("--epochs", "E", "epochs of a run that count", 2)
    train.option("--runs", "R", "runs of each arm; medians are printed", 3)
    train.option("--arms", "ARM", f"default: all of {', '.join(LADDER)}", nargs="+")
    spec = f"samplers of the arm `planned`: NAME or NAME:KEY=VALUE,KEY=VALUE (default: {' '.join(LADDER_SAMPLERS)})"
    train.option("--samplers", "SPEC", spec, nargs="+")
    train.option("--threads", "T", "thread counts of the ceiling (default: 1 and one a core)", type=int, nargs="+")
    train.option("--workers", "W", "DataLoader workers of `usual` and `lightly` (default: one a core)", type=int)
    train.option("--device", None, "device of the training", "cpu", choices=("cpu", "cuda"))
    precisions = ("float32", "bf16", "fp16", "float64")
    train.option("--precision", None, "as train.precision", "float32", choices=precisions)
    train.flag("--compile", "compile the model with torch.compile, in all arms but lightly")
    train.option("--seed", "SEED", "seed of images, weights and plans", 0)
    train.option("--json", "FILE", "also write the figures to this file")
    train.flag("--overwrite", "replace an existing FILE")
    train.set_defaults(arms=LADDER, samplers=LADDER_SAMPLERS, run=_train)


def _train(arguments: argparse.Namespace) -> int:
    import joblib

    from mbcl.bench.train import bench_train
    from mbcl.bench.train_settings import TrainBenchSettings

    cores = joblib.cpu_count()
    defaults = {"threads": sorted({1, cores}), "workers": cores}
    values = option_values(arguments)
    bench_train(TrainBenchSettings(**values | {key: defaults[key] for key in defaults if values[key] is None}))
    return 0


def _add_ray(kinds: Any, run_ray: Callable[[argparse.Namespace], int]) -> None:
    ray = kinds.add_parser(
        "ray",
        help="measure Ray's overhead per trial: seconds to the first step, and beyond training",
        description="Run a study of tiny trials (one epoch on 300 digits) on a local Ray, one trial at a time, and "
        "print the seconds of each stage. Takes some ten seconds per trial.",
    )
    ray.option("--trials", "N", "number of trials", 12)
    ray.option("--sampler", None, "spectral also starts a planner", "shuffle", choices=("shuffle", "spectral"))
    ray.option("--out", "DIR", "also write ray.json to this folder")
    ray.flag("--overwrite", "replace an existing ray.json")
    ray.set_defaults(run=run_ray)
