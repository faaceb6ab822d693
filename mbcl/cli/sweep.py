"""``mbcl sweep`` and ``run_ray.py``: a study on Ray. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from mbcl.cli.parser import EXIT_BAD_INPUT, EXIT_INTERRUPTED

DESCRIPTION = """\
Run a study of batch samplers. A space file names a base experiment and what varies in it; every setting is trained
with every seed, evaluated, and compared in DIR/NAME/report.html."""

EPILOG = """\
examples:
  {command} --space tune_spaces/samplers.yaml                  functions and docstrings, nothing to download
  {command} --space tune_spaces/samplers.yaml --dry-run        list the trials, start nothing
  {command} --space tune_spaces/samplers.yaml --name short --set train.epochs=2 --set 'seeds=[0]'
  {command} --space tune_spaces/samplers.yaml --resume         run what is missing or failed
  {command} --space tune_spaces/samplers.yaml --extend --set 'seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]'
  {command} --space results/samplers/space.yaml                run that study again, as it ran

exit codes: 0 every trial finished; 1 some trial failed; 2 bad input, or a dry run lacks something here;
130 interrupted (--resume goes on)"""


def settings_of(command: str) -> dict[str, Any]:
    """Return the texts of the parser of a command."""
    epilog = EPILOG.format(command=command)
    return {
        "description": DESCRIPTION,
        "epilog": epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def add_sweep(commands: Any) -> None:
    """Add ``sweep`` to the commands."""
    sweep = commands.add_parser("sweep", help="run a study on Ray, as run_ray.py does", **settings_of("mbcl sweep"))
    add_options(sweep)
    sweep.set_defaults(run=_sweep)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a study."""
    add = parser.add_argument
    add("--space", type=Path, required=True, metavar="FILE", help="the space file (YAML)")
    name = "the results folder's name (default: the file's stem; of a study's own space.yaml: its name with -again)"
    add("--name", metavar="NAME", help=name)
    folder = "where results folders lie: a local path or a URI such as s3://bucket/results (default: results)"
    add("--results-dir", default="results", metavar="DIR", help=folder)
    key = "change a key of the space file: dotted path, YAML value; may be given several times"
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=key)
    plugin = (
        "a Python file that registers a sampler, objective, encoder or data set, besides those of the space's key "
        "`plugins`; may be given several times"
    )
    add("--plugin", dest="plugins", action="append", default=[], metavar="FILE", help=plugin)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true", help="run only what is missing or failed in DIR/NAME")
    more = "add the seeds, settings and draws that the space has more than DIR/NAME, and compare all"
    what.add_argument("--extend", action="store_true", help=more)
    what.add_argument("--eval-only", action="store_true", help="evaluate the finished trials of DIR/NAME again")
    dry = "check everything, list every trial with its parameters, and the resources; start nothing"
    add("--dry-run", action="store_true", help=dry)
    watch = "write the report again every half minute while trials run; an open page follows"
    add("--watch", action="store_true", help=watch)
    address = "an existing Ray cluster, for example auto (default: a local Ray that ends with the run)"
    add("--address", metavar="ADDR", help=address)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="print only the final table")
    how.add_argument("--verbose", action="store_true", help="let Ray and the trials talk")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Run a study; return the exit code. ``command`` is what the user called, for the line that resumes."""
    values = {key: value for key, value in vars(arguments).items() if key != "run"}
    if not arguments.quiet:  # imports take seconds, on a loaded machine many
        sys.stderr.write(f"{arguments.space}: loading; then the space and its data are checked, and trials begin\n")
    if find_spec("ray") is None:
        sys.stderr.write("error: ray is not installed; pip install 'mbcl[ray]'\n")
        return EXIT_BAD_INPUT
    from mbcl.orchestration import signals

    signals.install_handlers(reset=True)
    try:
        # These take seconds, in which an interrupt is one line, too.
        from mbcl import report
        from mbcl.orchestration.study import StudyOptions
        from mbcl.orchestration.study import run as run_study
    except KeyboardInterrupt:
        sys.stderr.write(f"error: {signals.NOT_STARTED}\n")
        return signals.EXIT_INTERRUPTED
    values |= {key: tuple(values[key]) for key in ("overrides", "plugins")}
    write: Callable[..., str] = report.write
    return run_study(StudyOptions(**values, command=tuple(command)), write)


def leave(code: int) -> NoReturn:
    """End the process; after an interrupt at once.

    Everything is saved then. Ray's threads, cut anywhere, now and then abort an interpreter that is taken down around
    them, and the shell would see another code.
    """
    if code == EXIT_INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a closed pipe
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _sweep(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", force=True)
    if arguments.verbose:
        logging.getLogger().setLevel(logging.INFO)
    leave(run(arguments, ("mbcl", "sweep")))
