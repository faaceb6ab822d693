"""Request to the reader of a data set."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mbcl.errors import ConfigError, DataError
from mbcl.io.store import is_uri, local_path
from mbcl.io.uris import check_uri

Verify = Literal["warn", "strict"]
DIM = 256
"""Numbers of a side of pairs that are made from text, unless given."""
TEST_SHARE = 0.2
"""The share of pairs that are split off as the test part, unless given."""
LEAST_SIZE, LARGEST_SIZE = 4, 1024
"""Allowed range of the side of the views, in pixels."""
LEAST_BITS, MOST_BITS = 9, 16
"""Allowed range of the significant bits of a 16-bit image."""


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """Request to the reader of a data set.

    Args:
        dir, download, verify, exif, bits: as for :func:`mbcl.data.load`.
        max_samples: number of training images that the caller keeps. A reader may return more.
        image_size: side of the views in pixels. Only readers of sets without a fixed image size use it.
        dim, dropout, test: as for :func:`mbcl.data.load`. Only readers of pairs use them.
        copied: whether ``dir`` is this node's copy of a URI. If so, a pack in it is used without a look at its source
            folder, which may exist on some nodes only.
        takes_file: whether ``dir`` may be a file, as of ``pairs``.

    Raises:
        DataError: if the folder is a file.
        ConfigError: if a number is out of range, the URI is refused, or ``~user`` in the folder has no home folder.
    """

    dir: str | None = None
    download: bool = False
    max_samples: int | None = None
    image_size: int | None = None
    dim: int = DIM
    dropout: float = 0.0
    test: float = TEST_SHARE
    verify: Verify = "warn"
    exif: bool = True
    bits: int | None = None
    copied: bool = False
    takes_file: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and not LEAST_SIZE <= self.image_size <= LARGEST_SIZE:
            raise ConfigError(f"data: image_size must be in {LEAST_SIZE}..{LARGEST_SIZE}, found {self.image_size}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"data: max_samples must be at least 1, found {self.max_samples}")
        if self.bits is not None and not LEAST_BITS <= self.bits <= MOST_BITS:
            raise ConfigError(f"data: bits must be in {LEAST_BITS}..{MOST_BITS}, found {self.bits}")
        if self.dir == "":
            raise DataError("the folder of the data is empty text; write . for the one that you are in")
        try:
            if self.dir is not None:
                check_uri(self.dir) if is_uri(self.dir) else local_path(self.dir)
        except ConfigError as error:
            raise ConfigError(f"dir: {error}") from error
        is_folder = self.dir is not None and not is_uri(self.dir) and not self.takes_file
        if is_folder and (file := Path(str(self.dir)).expanduser()).is_file():
            raise DataError(f"{self.dir} is a file; expected the folder that it is in, {file.parent}")
        if self.verify not in get_args(Verify):
            raise ConfigError(f"verify: found {self.verify!r}, allowed: {', '.join(get_args(Verify))}")

    @property
    def root(self) -> Path | None:
        """The folder as a path, with ``~`` expanded."""
        return None if self.dir is None else Path(self.dir).expanduser()

    def object(self, text: str) -> None:
        """Report a deviation in one line that begins with the data set's name, as a warning or an error.

        Raises:
            DataError: if ``verify`` is strict.
        """
        if self.verify == "strict":
            raise DataError(f"{text} (an error because of data.verify: strict)")
        warnings.warn(text, UserWarning, stacklevel=3)

    def object_to_counts(self, where: str, counts: tuple[int, int], official: tuple[int, int]) -> None:
        """Report numbers of training and test images that differ from the official ones.

        ``where``, the start of the message, names data set and folder.

        Raises:
            DataError: if they differ and ``verify`` is strict.
        """
        if counts != official:
            self.object(
                f"{where} holds {counts[0]:,} training and {counts[1]:,} test images, the official set has "
                f"{official[0]:,} and {official[1]:,}"
            )
