"""What all readers share: errors and shapes in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mbcl.errors import DataError


def one_line(error: Exception) -> str:
    """Return the message of an error in one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


MOST_SHOWN = 160
"""Longest text of a sample that is shown, in characters."""


def shortened(text: str) -> str:
    r"""Return the beginning of a text in one line.

    Example:
        >>> shortened("Return\n  the size.")
        'Return the size.'
    """
    line = " ".join(text[: 20 * MOST_SHOWN].split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 1]}…"


def format_shape(shape: Sequence[int]) -> str:
    """Return the sizes as ``3 x 32 x 32``."""
    return " x ".join(map(str, shape))


@contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """Convert an OSError into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: if it cannot be read.
    """
    with data_errors(path):
        return path.read_bytes()
