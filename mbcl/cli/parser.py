"""An argument parser whose errors are one line, like all other errors of mbcl, with the forms that options share."""

from __future__ import annotations

import argparse
import io
from typing import Any, NoReturn, TextIO

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser that prints its errors as one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error with a reference to ``--help`` and exit with code 2."""
        self.exit(EXIT_BAD_INPUT, f"error: {message} (see {self.prog} --help)\n")

    def option(self, name: str, metavar: str | None, help: str, default: Any = None, **settings: Any) -> None:
        """Add an option with a value. A default determines the type, and the help names it."""
        if default is not None:
            help, settings = f"{help} (default: %(default)s)", {"type": type(default), **settings}
        self.add_argument(name, metavar=metavar, help=help, default=default, **settings)

    def flag(self, name: str, help: str) -> None:
        """Add an option without a value."""
        self.add_argument(name, action="store_true", help=help)

    def overrides(self, help: str) -> None:
        """Add ``--set KEY=VALUE``, which can be repeated."""
        self.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=help)

    def plugins(self, *, note: str = "") -> None:
        """Add ``--plugin FILE``, which can be repeated; :func:`mbcl.cli.main` loads the files."""
        help = f"Python file that registers a sampler, objective, encoder or data set{note}; can be repeated"
        self.add_argument("--plugin", metavar="FILE", action="append", default=[], help=help)


def option_values(arguments: argparse.Namespace, *others: str) -> dict[str, Any]:
    """Return the values of the options by name, without those named ``others``."""
    return {key: value for key, value in vars(arguments).items() if key not in ("run", "plugin", *others)}


def printable(stream: TextIO) -> None:
    """Let a stream replace characters that its encoding lacks (with ``LANG=C``, say), instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
