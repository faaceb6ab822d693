"""An argument parser whose errors are one line, like all other errors of mbcl."""

from __future__ import annotations

import argparse
from typing import NoReturn

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser that prints its errors as one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error with a reference to ``--help`` and exit with code 2."""
        self.exit(EXIT_BAD_INPUT, f"error: {message} (see {self.prog} --help)\n")
