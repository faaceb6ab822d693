"""``mbcl``: one thing at a time, in this process, without Ray."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mbcl import __version__
from mbcl.cli.bench import add_bench
from mbcl.cli.data import add_data
from mbcl.cli.evaluate import add_evaluate
from mbcl.cli.parser import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, Parser
from mbcl.cli.plan import add_plan
from mbcl.cli.synthetic import add_synthetic
from mbcl.errors import ConfigError, MbclError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="mbcl", description="Contrastive learning where the batches are chosen: one thing at a time.")
    top.add_argument("--version", action="version", version=f"mbcl {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    add_evaluate(commands)
    _add_export(commands)
    _add_report(commands)
    add_data(commands)
    add_plan(commands)
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
    """Run one command; returns the exit code (0, 1 failed, 2 bad input, 130 interrupted)."""
    parsed = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.formatwarning = lambda message, *place, **more: f"note: {message}\n"
    # A terminated run is an interrupted one: files are closed, the line that resumes it is printed.
    # A shell that starts it in the background tells it to ignore SIGINT; an interrupt is an interrupt all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun all processes of a machine read the same input
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
        description="Train one experiment in this process, without Ray: a debugger's breakpoint works. Under torchrun "
        "every process is one worker. An interrupted training goes on with --resume.",
    )
    train.add_argument("--config", metavar="FILE", help="a space file (its `experiment` block is read) or that block")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="e.g. train.epochs=2")
    train.add_argument("--out", metavar="DIR", default="results/train", help="where to write (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on from the last good checkpoint in DIR")
    train.add_argument("--quiet", action="store_true", help="print nothing but the result")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from mbcl.config.base import apply_overrides, validate
    from mbcl.config.experiment import Experiment, read_experiment
    from mbcl.console.epoch_lines import EpochLines
    from mbcl.distributed import collectives
    from mbcl.engine import checkpoint, train
    from mbcl.io.store import check_writable, open_store

    content = read_experiment(arguments.config) if arguments.config else {}
    apply_overrides(content, arguments.set)
    source = " with ".join([arguments.config or "the experiment", *(f"--set {override}" for override in arguments.set)])
    experiment = validate(Experiment, content, source)
    store = open_store(arguments.out)
    check_writable(store, "--out")
    if checkpoint.names(store) and not arguments.resume:
        raise ConfigError(f"{arguments.out}: holds a training already; add --resume, or choose another --out")
    world = collectives.init_from_env()
    lines = None if arguments.quiet or world.rank else EpochLines(experiment.train.epochs)
    try:
        outcome = train(
            experiment,
            world=world,
            store=store,
            observers=[lines] if lines else [],
            run_id=Path(arguments.out).name,
            log=lines.log if lines else None,
        )
    except KeyboardInterrupt:
        if world.rank == 0:
            start = ["torchrun", "--nproc-per-node", str(world.size), "-m"] if world.size > 1 else []
            line = shlex.join([*start, "mbcl", "train", *_given(arguments), "--resume"])
            sys.stderr.write(f"interrupted; what is finished is kept. To go on:\n  {line}\n")
        return EXIT_INTERRUPTED
    finally:
        collectives.finish()
    if world.rank == 0:
        sys.stdout.write(f"{outcome.epochs} epochs; checkpoint {arguments.out}/checkpoints/{outcome.checkpoint}\n")
    return 0


def _given(arguments: argparse.Namespace) -> list[str]:
    config = ["--config", arguments.config] if arguments.config else []
    overrides = [word for override in arguments.set for word in ("--set", override)]
    return [*config, *overrides, "--out", arguments.out]


# -- export -----------------------------------------------------------------------------------------------------


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a checkpoint's weights for other programs",
        description="Write a checkpoint's encoder as safetensors and as a state dict with torchvision's names, the "
        "whole model as safetensors, and export.json, which says what they are.",
    )
    export.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        help="the folder that training wrote (with checkpoints/ in it), or one checkpoint folder",
    )
    export.add_argument("--best", action="store_true", help="the best validation retrieval, instead of the last one")
    export.add_argument("--out", metavar="DIR", required=True, help="where to write; it must not hold an export yet")
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from mbcl.engine.checkpoint import folder_and_checkpoint
    from mbcl.export import export, how_to_load
    from mbcl.io.store import check_writable, open_store

    folder, name = folder_and_checkpoint(arguments.checkpoint)
    out = open_store(arguments.out)
    check_writable(out, "--out")
    record = export(open_store(folder), out=out, checkpoint=name, best=arguments.best)
    encoder = record["build"]["encoder"]["name"]
    sys.stdout.write(
        f"{arguments.out}: {encoder}, {record['out_features']} features, of checkpoint {record['checkpoint']['name']}\n"
    )
    for way, lines in how_to_load(record, arguments.out.rstrip("/")).items():
        sys.stdout.write(f"with {way}:\n" + "".join(f"  {line}\n" for line in lines))
    sys.stdout.write(f"torchvision: {record['torchvision']['note']}\n")
    return 0


# -- report, doctor, list ----------------------------------------------------------------------------------------


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write a study's tables and report again")
    report.add_argument(
        "--results", metavar="DIR", required=True, help="the study's folder, for example results/samplers"
    )
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from mbcl.io.store import open_store
    from mbcl.report import write
    from mbcl.study.record import read_study

    store = open_store(arguments.results)
    write(store, read_study(store))
    sys.stdout.write(f"{arguments.results}/report.html\n")
    return 0


def _write_synthetic(store: Any, outcome: Any) -> None:
    from mbcl.report import synthetic

    synthetic.write(store, outcome)


def _bench_ray(arguments: argparse.Namespace) -> int:
    try:
        from mbcl.orchestration.bench import RayBenchSettings, bench_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'mbcl[ray]'") from error
    from mbcl import report

    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    return bench_ray(RayBenchSettings(**settings), report.write)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check that several workers train exactly as one",
        description="Train every objective for some steps on 1, 2 and 4 gloo processes of this machine and print how "
        "far loss, gradients and state are from those of a single process with the whole batch. Exit code 1 if an "
        "error is beyond its bound: 1e-9 in float64; in float32 thirty times what one process rounds, measured against "
        "float64. Takes a minute or two; no GPU needed.",
    )
    doctor.add_argument(
        "--workers",
        metavar="N",
        type=int,
        nargs="+",
        default=[1, 2, 4],
        help="numbers of processes that share a batch of 16, a chunk of 8 (default: 1 2 4)",
    )
    doctor.add_argument("--objectives", metavar="NAME", nargs="+", help="default: all")
    doctor.add_argument("--dtypes", choices=("float64", "float32"), nargs="+", default=["float64", "float32"])
    doctor.add_argument("--accumulation", choices=("none", "cached"), nargs="+", default=["none", "cached"])
    doctor.add_argument("--steps", metavar="N", type=int, default=4, help="steps of each (default: %(default)s)")
    doctor.add_argument("--out", metavar="DIR", help="write doctor.json there, too")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from mbcl.cli.doctor import examine
    from mbcl.functional import check_count
    from mbcl.objectives import OBJECTIVES

    within = examine(
        workers=arguments.workers,
        objectives=[OBJECTIVES.canonical(name) for name in arguments.objectives or OBJECTIVES],
        dtypes=arguments.dtypes,
        accumulations=arguments.accumulation,
        steps=check_count("--steps", arguments.steps),
        out=arguments.out,
    )
    return 0 if within else EXIT_FAILED


def _add_list(commands: Any) -> None:
    listing = commands.add_parser("list", help="what can be named in a configuration, with parameters and defaults")
    listing.add_argument(
        "kind", nargs="?", choices=("samplers", "objectives", "optimizers", "encoders", "datasets"), help="only these"
    )
    listing.add_argument(
        "name",
        nargs="?",
        help="only this sampler, objective, optimizer or encoder, with all that its documentation says of it",
    )
    listing.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    from mbcl.console.listing import about, lines

    if arguments.name is not None:
        sys.stdout.write(about(arguments.kind, arguments.name) + "\n")
        return 0
    sys.stdout.write("\n".join(lines(arguments.kind)) + "\n")
    return 0


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="what one sampler, objective, optimizer or encoder is, with parameters and defaults",
        description="Say what a sampler, objective, optimizer or encoder is, and what each of its parameters means. "
        "`mbcl list` shows the names; published ones and torchvision's architectures work, too.",
    )
    explain.add_argument("name", help="e.g. spectral, sogclr, lars, resnet18")
    explain.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from mbcl.console.listing import explain

    sys.stdout.write(explain(arguments.name) + "\n")
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    sys.stdout.write(shtab.complete(parser(), arguments.shell) + "\n")
    return 0
