"""Reader of IDX files, plain or gzipped, the format of MNIST and its successors."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbcl.data.messages import format_shape, read_bytes
from mbcl.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, num_dims: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    The format is: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, then the data in row-major order.

    Args:
        path: the file; gzipped if it ends in ``.gz``.
        num_dims: required number of dimensions: 3 for images, 1 for labels.

    Returns:
        A uint8 array of the file's shape.

    Raises:
        DataError: if the file does not match; the one-line message has the file, the found and the expected value.
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
        raise DataError(f"{path}: it is empty: its header says {format_shape(shape)}")
    actual, required = len(content) - start, math.prod(shape)
    if actual != required:
        fault = "truncated" if actual < required else "too long"
        raise DataError(f"{path}: {fault}: its header says {format_shape(shape)} = {required} bytes, found {actual}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    raw = read_bytes(path)
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file of {len(raw)} bytes: {error}") from error
