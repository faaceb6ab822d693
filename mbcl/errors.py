"""The errors that are meant for users. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MbclError(Exception):
    """Base class of all errors that mbcl raises on purpose. The message is one line for the user."""


class ConfigError(MbclError, ValueError):
    """Bad input: a file, a key or a value. Commands end with exit code 2."""


class DataError(ConfigError):
    """A data set is missing, incomplete or damaged. Commands end with exit code 2."""


class ResourcesError(ConfigError):
    """A machine or cluster has fewer devices or cores than a study needs. Commands end with exit code 2."""


class PlanError(MbclError, ValueError):
    """A batch plan or the embeddings that it is made from are not valid."""


class TrainingError(MbclError):
    """Training cannot continue, for example because the loss is not finite."""


class DivergenceError(TrainingError):
    """The loss, the gradients or the embeddings of a training are not finite."""


class StorageError(TrainingError):
    """Writing to the storage behind a URI failed. The failure may be transient, so a later attempt can succeed."""


class OwnershipError(MbclError):
    """Another run has taken over the output folder of this run."""


class SamplerWarning(UserWarning):
    """A setting of a sampler has no effect, or not the one that its name promises, on this number of samples."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, damaged or of another experiment. Commands end with exit code 2."""


def pluralize(number: float, noun: str, form: str = "") -> str:
    """Format a count, by the format ``form``, with its noun: ``1 trial``, ``2 batches``; for plurals in -s or -es."""
    plural = "" if number == 1 else "es" if noun.endswith(("s", "tch")) else "s"
    return f"{number:{form}} {noun}{plural}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an error message: the closest known name, if there is a close one, and all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"
