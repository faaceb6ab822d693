"""Restricted unpickler for data files: containers, text, bytes, numbers and arrays of numbers.

A pickle can name and call any function, so unpickling an untrusted file runs its code. Here every global is refused,
except those of a pickled array, which are replaced by stand-ins. NumPy's own functions are not safe either: they would
build an array of object pointers from the bytes of the file.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mbcl.data.messages import one_line
from mbcl.errors import DataError


class _DType:
    """Stand-in for ``numpy.dtype``; accepts only plain numbers."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self._code = _text(code)
        self._order = "="
        if not re.fullmatch("[biuf][1248]", self._code):
            raise ValueError(f"an array of type {self._code!r}, only plain numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = _text(state[1])
        if self._order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of byte order {self._order!r}")

    def build(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array:
    """Stand-in for ``numpy.ndarray``."""

    values: npt.NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType) or not isinstance(content, bytes):
            raise ValueError("an array whose content is not bytes of numbers")
        kind = dtype.build()
        if len(content) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} with {len(content)} bytes")
        self.values = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


class _Function:
    """Stand-in for a function; a class, so that ``__setstate__`` can refuse a pickle that sets attributes on it."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("a function with attributes")


class _Reconstruct(_Function):
    """Stand-in for NumPy's ``_reconstruct``."""

    def __new__(cls, *_: object) -> _Array:  # type: ignore[misc]  # calling the class returns an array
        return _Array()


class _Encode(_Function):
    """Stand-in for ``codecs.encode``, which would look up any codec by name; accepts only latin1."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]  # calling the class returns bytes
        if encoding != "latin1":
            raise ValueError(f"bytes written by the codec {encoding!r}")
        return text.encode("latin1")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("_codecs", "encode"): _Encode,  # the encoding of bytes by Python 3 in protocol 2
}


class _Reader(pickle.Unpickler):
    """Unpickler with an allowlist: it refuses every global outside ``_STAND_INS`` before importing its module."""

    def __init__(self, content: bytes, source: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(
                f"{self._source}: refused: this pickle names {module}.{name}; expected only containers, text, bytes, "
                f"numbers and NumPy arrays of numbers"
            )
        return _STAND_INS[module, name]


def read_pickled_mapping(content: bytes, source: str) -> dict[str, Any]:
    """Read a pickled mapping, written by Python 2 or 3, with keys as text and arrays as read-only NumPy arrays.

    Raises:
        DataError: if the pickle is damaged, is not a mapping with strings as keys, or names a function or class other
            than those of plain arrays, which is not executed. The one-line message begins with ``source``, the file.
    """
    try:
        loaded = _Reader(content, source).load()
    except DataError:
        raise
    except Exception as error:  # per the documentation of pickle, a damaged one can raise any exception
        raise DataError(f"{source}: damaged, cannot be read as a pickle: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{source}: expected a pickled mapping, found {type(loaded).__name__}")
    mapping = {}
    for key, value in loaded.items():
        if not isinstance(key, str | bytes):
            raise DataError(f"{source}: expected a pickled mapping with words as keys, found the key {key!r}")
        mapping[_text(key)] = getattr(value, "values", None) if isinstance(value, _Array) else value
    return mapping
