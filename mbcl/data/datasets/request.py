"""What is asked of a reader of a data set."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mbcl.errors import DataError

Verify = Literal["warn", "strict"]
LEAST_SIZE, LARGEST_SIZE = 4, 1024
"""Sides of views that can be asked for, pixels."""


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """What is asked of a reader.

    Args:
        dir: the folder of the files, as the user gave it.
        download: fetch missing files into it.
        max_samples: only so many training images will be kept; a reader need not make more, but may.
        image_size: side of the views, pixels; only sets whose images have no size of their own need it to read.
        verify: whether what is not official, or no longer as it was packed, is a warning or an error.
        copied: the folder is this node's copy of what a URI holds. A pack in it is the data set: the folder that it was
            made from may exist on some nodes and not on others, so it is not looked for.
    """

    dir: str | None = None
    download: bool = False
    max_samples: int | None = None
    image_size: int | None = None
    verify: Verify = "warn"
    copied: bool = False

    def __post_init__(self) -> None:
        if self.dir == "":
            raise DataError("the folder of the data is empty text; write . for the one that you are in")

    @property
    def root(self) -> Path | None:
        """The folder, with ``~`` replaced."""
        return None if self.dir is None else Path(self.dir).expanduser()

    def object(self, text: str) -> None:
        """Say what is not as it should be.

        Args:
            text: one line that begins with the data set.

        Raises:
            DataError: if ``verify`` is strict; otherwise it is a warning.
        """
        if self.verify == "strict":
            raise DataError(f"{text} (an error because of data.verify: strict)")
        warnings.warn(text, UserWarning, stacklevel=3)

    def object_to_counts(self, where: str, found: tuple[int, int], official: tuple[int, int]) -> None:
        """Say if a data set is not the whole official one.

        Args:
            where: what the line begins with: data set and folder.
            found: training and test images.
            official: likewise.

        Raises:
            DataError: if they differ and ``verify`` is strict.
        """
        if found != official:
            self.object(
                f"{where} holds {found[0]:,} training and {found[1]:,} test images, the official set has "
                f"{official[0]:,} and {official[1]:,}"
            )
