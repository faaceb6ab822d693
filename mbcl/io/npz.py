"""Content of ``.npz`` files. Reading treats untrusted files as data and never unpickles them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mbcl.errors import ConfigError, nearest


def to_npz(**arrays: Any) -> bytes:
    """Return the content of a compressed ``.npz`` file with arrays by name."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def read_arrays(
    path: Path | str, required: Sequence[str], optional: Sequence[str] = (), *, others: bool = True
) -> dict[str, NDArray[Any]]:
    """Read arrays of an ``.npz`` file by name.

    Args:
        path: the file. Only the named arrays are read.
        required: names that must exist.
        optional: names that may exist.
        others: whether arrays with other names may exist.

    Returns:
        The arrays by name, converted to the byte order of this machine.

    Raises:
        ConfigError: if the file cannot be read, is not an ``.npz`` file, is damaged, lacks a required array, or holds
            an array with another name or with Python objects, which are never unpickled.
    """
    try:
        # Opened here, because NumPy does not close a file that turns out to be damaged.
        with Path(path).open("rb") as stream:
            return _read_archive(stream, path, required, optional, others)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_array(path: Path | str) -> NDArray[Any]:
    """Read the array of an ``.npy`` file, in the byte order of this machine.

    Raises:
        ConfigError: if the file cannot be read, holds no array, or holds Python objects, which are never unpickled.
    """
    try:
        with Path(path).open("rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except MemoryError as error:
        raise ConfigError(f"{path}: the array is larger than the memory of this machine") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        reason = "holds Python objects, which are not read" if "pickle" in str(error) else "not an .npy file"
        raise ConfigError(f"{path}: {reason}") from error
    except Exception as error:  # damaged bytes make NumPy raise many exception types
        raise ConfigError(f"{path}: not an .npy file") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _read_archive(
    stream: BinaryIO, path: Path | str, required: Sequence[str], optional: Sequence[str], others: bool
) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(stream, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # damaged bytes make zipfile and NumPy raise many exception types
        raise ConfigError(f"{path}: not an .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ConfigError(f"{path}: holds a single array, expected an .npz file with {', '.join(required)}")
    with archive:
        allowed = (*required, *optional)
        for name in () if others else sorted(set(archive) - set(allowed)):
            raise ConfigError(f"{path}: unknown array {name!r}; {nearest(name, allowed)}")
        for name in required:
            if name not in archive:
                present = ", ".join(sorted(archive)) or "nothing"
                raise ConfigError(f"{path}: holds no array {name!r}; it holds {present}")
        return {name: _read_array(archive, path, name) for name in allowed if name in archive}


def _read_array(archive: Any, path: Path | str, name: str) -> NDArray[Any]:
    try:
        array = archive[name]
    except ValueError as error:
        reason = "holds Python objects, which are not read" if "pickle" in str(error) else "is damaged"
        raise ConfigError(f"{path}: array {name!r} {reason}") from error
    except MemoryError as error:
        raise ConfigError(f"{path}: array {name!r} is larger than the memory of this machine") from error
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: array {name!r} is damaged") from error
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{path}: {name!r} is not an array")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
