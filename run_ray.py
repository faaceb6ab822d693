"""Run a study: every setting of a space file with every seed, through Ray Tune, with an evaluation and a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mbcl.cli.parser import Parser
from mbcl.cli.sweep import add_options, leave, run, settings_of

COMMAND = ("python", "run_ray.py")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="run_ray.py", **settings_of(" ".join(COMMAND)))
    add_options(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(parser().parse_args(arguments), COMMAND)


if __name__ == "__main__":
    leave(main())
