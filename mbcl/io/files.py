"""Files on a local disk: atomic writes and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_name(name: str) -> str:
    """Return a new name for the temporary file that becomes file ``name``: ``.NAME.RANDOM.tmp``."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file has such a name. A file of that kind is left by a killed process, and no store lists it."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def atomic_write(path: Path, *, name: Callable[[], str] | None = None) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces a file, unless the block raises: safe against kills and power cuts.

    Temporary file (:func:`temporary_name`) in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: the file, in an existing folder.
        name: called after the block for the file's final name, for names that depend on the content.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path.with_name(name()) if name else path)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        fsync(path.parent)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the answer of file systems that cannot sync a folder, such as SMB
            raise


def fsync(path: Path | str) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file. MD5 detects damage only: official checksums exist only as MD5."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
