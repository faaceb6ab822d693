"""The ``mbcl`` command: each subcommand does one job in this process, without Ray (except ``bench ray``)."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from mbcl import __version__
from mbcl.cli.bench import add_bench
from mbcl.cli.data import add_data
from mbcl.cli.embed import add_embed
from mbcl.cli.evaluate import add_evaluate
from mbcl.cli.group_interrupt import GroupInterrupt
from mbcl.cli.parser import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, Parser, option_values, printable
from mbcl.cli.plan import add_plan
from mbcl.cli.report import add_report
from mbcl.cli.spaces import add_spaces
from mbcl.cli.sweep import add_sweep
from mbcl.cli.synthetic import add_synthetic
from mbcl.errors import ConfigError, MbclError, pluralize
from mbcl.plugins import load_plugins


def parser() -> argparse.ArgumentParser:
    """Build the argument parser of ``mbcl`` with all subcommands."""
    top = Parser(
        prog="mbcl",
        description="Contrastive learning with a choice of which samples meet in a batch. Each command does one job.",
    )
    top.add_argument("--version", action="version", version=f"mbcl {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    add_evaluate(commands)
    add_embed(commands)
    _add_export(commands)
    add_report(commands)
    add_data(commands)
    add_plan(commands)
    add_sweep(commands)
    add_spaces(commands)
    add_synthetic(commands, _write_synthetic)
    add_bench(commands, _bench_ray)
    _add_doctor(commands)
    _add_list(commands)
    _add_explain(commands)
    completion = commands.add_parser("completion", help="print a shell completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    printable(sys.stdout)
    parsed = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.formatwarning = lambda message, *args, **kwargs: f"note: {message}\n"
    # SIGTERM is handled like SIGINT: files are closed, and the command that resumes the run is printed.
    # SIGINT is set explicitly, because a shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        load_plugins(getattr(parsed, "plugin", []))
        return run(parsed)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun, only one process of a machine prints it
            sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    except MbclError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        sys.stderr.write(f"error: {error.filename or 'files'}: {error.strerror or error}\n")
        return EXIT_FAILED


# -- train ------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train one experiment in this process",
        description="Train one experiment in this process, without Ray, so that a debugger's breakpoint works. Under "
        "torchrun, every process is one worker. --resume continues an interrupted training.",
    )
    train.option("--config", "FILE", "YAML file with an experiment, or a space file, whose `experiment` block is read")
    train.overrides("override a key, e.g. train.epochs=2")
    train.plugins(note=", besides those of `plugins` in the configuration")
    train.option("--out", "DIR", "output folder", "results/train")
    train.flag("--resume", "continue from the last valid checkpoint in DIR")
    train.flag("--quiet", "print only the result")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from mbcl.config.base import apply_overrides, validate
    from mbcl.config.experiment import Experiment, add_plugins, read_experiment
    from mbcl.console.epoch_lines import EpochLines, title
    from mbcl.distributed import collectives
    from mbcl.engine import checkpoint, train
    from mbcl.io.store import check_writable, open_store

    content = read_experiment(arguments.config) if arguments.config else {}
    # A key may be given as run_ray.py takes it, with the block.
    apply_overrides(content, [override.removeprefix("experiment.") for override in arguments.set])
    add_plugins(content, arguments.plugin)
    source = " with ".join([arguments.config or "the experiment", *(f"--set {override}" for override in arguments.set)])
    experiment = validate(Experiment, content, source)
    store = open_store(arguments.out)
    check_writable(store, "--out")
    if checkpoint.names(store) and not arguments.resume:
        raise ConfigError(f"{arguments.out}: holds a training already; add --resume, or choose another --out")
    world = collectives.init_from_env()
    lines = None if arguments.quiet or world.rank else EpochLines(experiment.train.epochs)
    start = ["torchrun", "--nproc-per-node", str(world.size), "-m"] if world.size > 1 else []
    command = shlex.join([*start, "mbcl", "train", *_train_options(arguments), "--resume"])
    goodbye = f"interrupted; what is finished is kept. To go on:\n  {command}\n"
    group = GroupInterrupt("" if world.rank else goodbye) if world.size > 1 else None
    if lines:
        lines.log(title(experiment, world.size) + f", into {arguments.out}")
    try:
        outcome = train(
            experiment,
            world=world,
            store=store,
            observers=[lines] if lines else [],
            run_id=f"{Path(arguments.out).resolve().name}-{uuid4().hex[:8]}",  # a resumed training keeps its own
            log=lines.log if lines else None,
        )
    except KeyboardInterrupt:
        if group is not None:
            group.leave()
        sys.stderr.write(goodbye)
        return EXIT_INTERRUPTED
    finally:
        collectives.finish()
    if world.rank == 0:
        epochs = pluralize(outcome.epochs, "epoch")
        sys.stdout.write(f"{epochs}; checkpoint {arguments.out}/checkpoints/{outcome.checkpoint}\n")
    return 0


def _train_options(arguments: argparse.Namespace) -> list[str]:
    config = ["--config", arguments.config] if arguments.config else []
    overrides = [word for override in arguments.set for word in ("--set", override)]
    plugins = [word for file in arguments.plugin for word in ("--plugin", file)]
    return [*config, *overrides, *plugins, "--out", arguments.out]


# -- export -----------------------------------------------------------------------------------------------------


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="export a checkpoint's weights for other programs",
        description="Write the encoder of a checkpoint as safetensors and as a state dict with torchvision's names, "
        "the whole model as safetensors, and export.json, which describes the files.",
    )
    checkpoint = "output folder of a training (it contains checkpoints/), or one checkpoint folder"
    export.option("--checkpoint", "DIR", checkpoint, required=True)
    export.flag("--best", "export the checkpoint with the best validation retrieval, not the last one")
    export.plugins(note=" that the training used")
    export.option("--out", "DIR", "output folder; it must not contain an export yet", required=True)
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from mbcl.engine.checkpoint import folder_and_checkpoint
    from mbcl.export import export, how_to_load
    from mbcl.io.store import check_writable, open_store

    folder, name = folder_and_checkpoint(arguments.checkpoint)
    out = open_store(arguments.out)
    check_writable(out, "--out")
    record = export(open_store(folder), out=out, checkpoint=name, best=arguments.best)
    encoder, features = record["build"]["encoder"]["name"], pluralize(record["out_features"], "feature")
    sys.stdout.write(f"{arguments.out}: {encoder}, {features}, of checkpoint {record['checkpoint']['name']}\n")
    for way, lines in how_to_load(record, arguments.out.rstrip("/")).items():
        sys.stdout.write(f"with {way}:\n" + "".join(f"  {line}\n" for line in lines))
    sys.stdout.write(f"torchvision: {record['torchvision']['note']}\n")
    return 0


# -- doctor, list ------------------------------------------------------------------------------------------------


def _write_synthetic(store: Any, outcome: Any) -> None:
    from mbcl.report import synthetic

    synthetic.write(store, outcome)


def _bench_ray(arguments: argparse.Namespace) -> int:
    try:
        from mbcl.orchestration.bench import RayBenchSettings, bench_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'mbcl[ray]'") from error
    from mbcl import report

    return bench_ray(RayBenchSettings(**option_values(arguments)), report.write)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check that several workers train exactly like one",
        description="Train every objective for a few steps on 1, 2 and 4 gloo processes of this machine, and print the "
        "errors of loss, gradients and state relative to one process with the whole batch. The exit code is 1 if an "
        "error exceeds its bound: 1e-9 in float64; in float32, thirty times the rounding error of one process, "
        "measured against float64. Takes a minute or two and needs no GPU.",
    )
    workers = "numbers of processes that share a batch of 16, or a chunk of 8 (default: 1 2 4)"
    doctor.option("--workers", "N", workers, type=int, nargs="+")
    objectives = "objectives to check; local is one of distribution `local` (default: all)"
    doctor.option("--objectives", "NAME", objectives, nargs="+")
    doctor.add_argument("--dtypes", choices=("float64", "float32"), nargs="+", default=["float64", "float32"])
    doctor.add_argument("--accumulation", choices=("none", "cached"), nargs="+", default=["none", "cached"])
    doctor.option("--steps", "N", "steps of each case", 4)
    doctor.option("--out", "DIR", "also write doctor.json to this folder")
    doctor.set_defaults(workers=[1, 2, 4], run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from mbcl.cli.doctor import examine
    from mbcl.engine.gradient_parity import LOCAL
    from mbcl.functional import check_count
    from mbcl.objectives import OBJECTIVES

    names = arguments.objectives or [*OBJECTIVES, LOCAL]
    arguments.objectives = [name if name == LOCAL else OBJECTIVES.canonical(name) for name in names]
    check_count("--steps", arguments.steps)
    return 0 if examine(**option_values(arguments)) else EXIT_FAILED


def _add_list(commands: Any) -> None:
    summary = "list the names that a configuration can use, with parameters and defaults"
    listing = commands.add_parser("list", help=summary)
    kinds = ("samplers", "objectives", "optimizers", "encoders", "datasets")
    listing.add_argument("kind", nargs="?", choices=kinds, help="list only this kind")
    only = "only this sampler, objective, optimizer or encoder, with its full documentation"
    listing.add_argument("name", nargs="?", help=only)
    listing.plugins()
    listing.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    from mbcl.console.listing import about, lines

    text = [about(arguments.kind, arguments.name)] if arguments.name is not None else lines(arguments.kind)
    sys.stdout.write("\n".join(text) + "\n")
    return 0


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="explain a sampler, objective, optimizer, encoder, data set, or a key of the configuration",
        description="Explain a component with its parameters, a data set, a key of a space or experiment by its path "
        "or last word, or a parameter of components. `mbcl list` shows names; published names and architectures of "
        "torchvision work, too.",
    )
    explain.add_argument("name", nargs="+", help="e.g. spectral, sogclr, resnet18, cifar10, planner.overlap, mix")
    explain.plugins()
    explain.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from mbcl.console.listing import explain

    keys = cache(_keys)
    sys.stdout.write("\n\n".join([explain(name, keys) for name in arguments.name]) + "\n")
    return 0


def _keys() -> list[Any]:
    """Return the keys of experiments and of space files, those of experiments also as a space has them."""
    from mbcl.config.experiment import Experiment
    from mbcl.config.reference import keys_of
    from mbcl.orchestration.search_space.schema import Space
    from mbcl.synthetic.experiment import SyntheticExperiment

    synthetic = [key for key in keys_of(SyntheticExperiment) if key.path.startswith("synthetic.")]
    keys = [*keys_of(Experiment), *synthetic, *keys_of(Space)]
    return [*keys, *(replace(key, path=f"experiment.{key.path}") for key in keys_of(Experiment))]


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from mbcl.cli.completion import add_names

    top = parser()
    add_names(top)
    sys.stdout.write(shtab.complete(top, arguments.shell) + "\n")
    return 0
