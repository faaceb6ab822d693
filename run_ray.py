"""Run a study: every setting of a space file with every seed, through Ray Tune, with an evaluation and a report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mbcl.cli.parser import Parser
from mbcl.orchestration import signals

DESCRIPTION = """\
Run a study of batch samplers. A space file names a base experiment and what varies in it; every setting is trained
with every seed, evaluated, and compared in DIR/NAME/report.html."""

EPILOG = """\
examples:
  python run_ray.py --space tune_spaces/samplers.yaml                  real digits, nothing to download
  python run_ray.py --space tune_spaces/samplers.yaml --dry-run        list the trials, start nothing
  python run_ray.py --space tune_spaces/samplers.yaml --name short --set experiment.train.epochs=2 --set 'seeds=[0]'
  python run_ray.py --space tune_spaces/samplers.yaml --resume         run what is missing or failed
  python run_ray.py --space results/samplers/space.yaml                run that study again, as it ran

exit codes: 0 every trial finished; 1 some trial failed; 2 bad input; 130 interrupted (--resume goes on)"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="run_ray.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--space", type=Path, required=True, metavar="FILE", help="the space file (YAML)")
    result.add_argument(
        "--name",
        metavar="NAME",
        help="the results folder's name (default: the file's stem; of a study's own space.yaml: its name with -again)",
    )
    result.add_argument(
        "--results-dir",
        default="results",
        metavar="DIR",
        help="where results folders lie: a local path or a URI such as s3://bucket/results (default: results)",
    )
    result.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the space file: dotted path, YAML value; may be given several times",
    )
    result.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that registers a sampler, objective, encoder or data set, besides those of the space's key "
        "`plugins`; may be given several times",
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true", help="run only what is missing or failed in DIR/NAME")
    what.add_argument("--eval-only", action="store_true", help="evaluate the finished trials of DIR/NAME again")
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, list every trial with its parameters and resources, start nothing",
    )
    result.add_argument(
        "--address",
        metavar="ADDR",
        help="an existing Ray cluster, for example auto (default: a local Ray that ends with the run)",
    )
    how = result.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="print only the final table")
    how.add_argument("--verbose", action="store_true", help="let Ray and the trials talk")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    signals.install_handlers(reset=True)
    try:
        # These take seconds, in which an interrupt is one line, too.
        from mbcl import report
        from mbcl.orchestration.study import StudyOptions, run
    except KeyboardInterrupt:
        sys.stderr.write(f"error: {signals.NOT_STARTED}\n")
        return signals.EXIT_INTERRUPTED
    request = StudyOptions(
        **{**vars(options), "overrides": tuple(options.overrides), "plugins": tuple(options.plugins)}
    )
    return run(request, report.write)


def leave(code: int) -> NoReturn:
    """End the process; after an interrupt at once.

    Everything is saved then. Ray's threads, cut anywhere, now and then abort an interpreter that is taken down around
    them, and the shell would see another code.
    """
    if code == signals.EXIT_INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
