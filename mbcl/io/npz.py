"""Files of arrays, ``.npz``, from hands that are not trusted: what is in them is data, never code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mbcl.errors import ConfigError, nearest


def read_arrays(
    path: Path | str, required: Sequence[str], optional: Sequence[str] = (), *, others: bool = True
) -> dict[str, NDArray[Any]]:
    """Some arrays of an ``.npz`` file.

    Args:
        path: the file. What its other arrays hold is not looked at.
        required: names that must be there.
        optional: names that may be there.
        others: whether arrays of other names may be there.

    Returns:
        The arrays by name, in the byte order of this machine.

    Raises:
        ConfigError: if the file cannot be read, is no ``.npz``, is damaged, lacks a required array, holds one of
            a name that it must not have, or Python objects, which are never unpickled.
    """
    try:
        # Opened here, since NumPy leaves a file open that turns out to be damaged.
        with Path(path).open("rb") as stream:
            return _arrays(stream, path, required, optional, others)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _arrays(
    stream: BinaryIO, path: Path | str, required: Sequence[str], optional: Sequence[str], others: bool
) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(stream, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # damaged bytes make zipfile and NumPy raise many kinds
        raise ConfigError(f"{path}: not an .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ConfigError(f"{path}: holds a single array, expected an .npz file with {', '.join(required)}")
    with archive:
        known = (*required, *optional)
        for name in () if others else sorted(set(archive) - set(known)):
            raise ConfigError(f"{path}: unknown array {name!r}; {nearest(name, known)}")
        for name in required:
            if name not in archive:
                held = ", ".join(sorted(archive)) or "nothing"
                raise ConfigError(f"{path}: holds no array {name!r}; it holds {held}")
        return {name: _read(archive, path, name) for name in known if name in archive}


def _read(archive: Any, path: Path | str, name: str) -> NDArray[Any]:
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
