"""Reader of the idx files in which MNIST and its successors are published, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbcl.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, num_dims: int) -> npt.NDArray[np.uint8]:
    """Read one idx file of unsigned bytes.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, the data in row-major order.

    Args:
        path: the file; gzipped if it ends in ``.gz``.
        num_dims: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        A uint8 array of the file's shape.

    Raises:
        DataError: one line naming the file, what was found and what was expected.
    """
    content = _content(path)
    expected = bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    if content[:4] != expected:
        raise DataError(
            f"{path}: not an idx file of {num_dims}-d bytes: expected magic number 0x{expected.hex()}, "
            f"found 0x{content[:4].hex()}"
        )
    start = 4 + 4 * num_dims
    if len(content) < start:
        raise DataError(f"{path}: truncated: expected a header of {start} bytes, found {len(content)}")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=num_dims, offset=4))
    if 0 in shape:
        raise DataError(f"{path}: it is empty: its header says {_times(shape)}")
    found, wanted = len(content) - start, math.prod(shape)
    if found != wanted:
        fault = "truncated" if found < wanted else "too long"
        raise DataError(f"{path}: {fault}: its header says {_times(shape)} = {wanted} bytes, found {found}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file of {len(raw)} bytes: {error}") from error


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
