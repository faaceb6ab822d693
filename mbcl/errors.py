"""The errors that a user can cause or meet. Everything else is a bug and stays a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MbclError(Exception):
    """Base of all errors that mbcl raises on purpose. Its text is one line, meant for the user."""


class ConfigError(MbclError, ValueError):
    """Bad input: a file, a key or a value. Commands end with exit code 2."""


class DataError(ConfigError):
    """A data set is missing, incomplete or damaged. Commands end with exit code 2."""


class PlanError(MbclError, ValueError):
    """A batch plan or the embeddings that it is made from are not valid."""


class TrainingError(MbclError):
    """Training cannot go on, for example because the loss is not finite."""


class StorageError(TrainingError):
    """Storage behind a URI does not take what is written; a later attempt may meet it again in order."""


class OwnershipError(MbclError):
    """Another run has taken the folder over that this one writes to."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, damaged or another experiment's. Commands end with exit code 2."""


def pluralize(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``: a number of things whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error line: the known name nearest to ``name``, if any is near, and all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"
