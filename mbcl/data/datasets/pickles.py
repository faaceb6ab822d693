"""Reader of pickled data files that runs nothing: containers, text, bytes, numbers and arrays of numbers.

A pickle names functions and calls them. The ones that a pickled array names are replaced by stand-ins, and all others
are refused: NumPy's own would trust the file, and build an array of object pointers out of its bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mbcl.errors import DataError


class _DType:
    """Stands for ``numpy.dtype``: plain numbers only."""

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
    """Stands for ``numpy.ndarray``."""

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
    """Stands for a function. A class, whose ``__setstate__`` keeps a pickle from setting its attributes."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("a function with attributes")


class _Reconstruct(_Function):
    """Stands for NumPy's function of that name."""

    def __new__(cls, *_: object) -> _Array:  # type: ignore[misc]  # what is called makes an array
        return _Array()


class _Encode(_Function):
    """Stands for ``codecs.encode``, which would look for any codec by its name."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]  # what is called makes bytes
        if encoding != "latin1":
            raise ValueError(f"bytes written by the codec {encoding!r}")
        return text.encode("latin1")


def _text(word: str | bytes) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else word


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("_codecs", "encode"): _Encode,  # how Python 3 writes bytes in protocol 2
}


class _Reader(pickle.Unpickler):
    """Refuses every global that is not in ``_KNOWN``, before anything of it is imported."""

    def __init__(self, content: bytes, source: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise DataError(
                f"{self._source}: refused: this pickle names {module}.{name}; expected only containers, text, bytes, "
                f"numbers and NumPy arrays of numbers"
            )
        return _KNOWN[module, name]


def read_pickled_mapping(content: bytes, source: str) -> dict[str, Any]:
    """The mapping that a pickle holds, by Python 2 or 3; its keys as text, its arrays as NumPy's (read-only).

    Args:
        content: the pickle.
        source: what an error line begins with: the file.

    Raises:
        DataError: one line that begins with ``source``, if the pickle is damaged, names any function or class but
            those of plain arrays (nothing of it is executed), or is not a mapping with words as keys.
    """
    try:
        found = _Reader(content, source).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything, says the documentation of pickle
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: damaged, cannot be read as a pickle: {reason}") from error
    if not isinstance(found, dict):
        raise DataError(f"{source}: expected a pickled mapping, found {type(found).__name__}")
    mapping = {}
    for key, value in found.items():
        if not isinstance(key, str | bytes):
            raise DataError(f"{source}: expected a pickled mapping with words as keys, found the key {key!r}")
        mapping[_text(key)] = getattr(value, "values", None) if isinstance(value, _Array) else value
    return mapping
