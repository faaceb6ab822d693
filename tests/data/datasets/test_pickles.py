"""Pickled data files: plain arrays are read, any other global is refused."""

from __future__ import annotations

import codecs
import pickle

import numpy as np
import pytest
from data.official import pickled

from mbcl.data.datasets.pickles import _STAND_INS, read_pickled_mapping
from mbcl.errors import DataError


class CallOf:
    """An object whose pickle calls a given function."""

    def __init__(self, function, *arguments) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    "value, name",
    [
        (eval, "__builtin__.eval"),
        (np.array, "numpy.array"),
        (np.ndarray.tofile, "builtins.getattr|numpy.ndarray.tofile"),
        (np.float64(1), "numpy._core.multiarray.scalar"),
        (object(), "__builtin__.object|copy_reg._reconstructor|builtins.object"),
    ],
)
def test_read_pickled_mapping_refuses_all_globals_but_arrays(value, name):
    for protocol in (2, 4):
        text = name.replace("__builtin__", "builtins") if protocol == 4 else name.replace("builtins", "__builtin__")
        with pytest.raises(DataError, match=f"^file: refused: this pickle names ({text});"):
            read_pickled_mapping(pickle.dumps({"x": value}, protocol=protocol), "file")


@pytest.mark.parametrize(
    "value, text",
    [
        (np.array(["a"], dtype=object), "type 'O8'"),
        (np.zeros(2, dtype=[("a", "u1")]), "type 'V1'"),
        (CallOf(np.ndarray, (1,), "O", b"\xff" * 8), r"_Array\(\) takes no arguments"),
        (CallOf(np.dtype, "V8"), "type 'V8'"),
    ],
)
def test_read_pickled_mapping_makes_no_pointers_of_file_bytes(value, text):
    with pytest.raises(DataError, match=f"^file: damaged, cannot be read as a pickle: .*{text}"):
        read_pickled_mapping(pickle.dumps({"x": value}, protocol=2), "file")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<f8", "?"])
def test_read_pickled_mapping_reads_number_arrays(dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    for by in ("python 2", "protocol 2", "protocol 4"):
        read = read_pickled_mapping(pickled({b"x": array}, by), "file")["x"]
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


def test_read_pickled_mapping_changes_no_global_state():
    """The opcode BUILD sets attributes; on a stand-in they would persist for all later files."""
    attributes = b"}X\x08\x00\x00\x00pollutedK\x01s"
    for (module, name), stand_in in _STAND_INS.items():
        for state in (attributes, b"(N" + attributes + b"t"):  # as an object's dictionary, as its slots
            with pytest.raises(DataError):
                read_pickled_mapping(f"c{module}\n{name}\n".encode() + state + b"b0}.", "evil")
            assert not hasattr(stand_in, "polluted")


def test_read_pickled_mapping_refuses_other_codecs():
    content = pickle.dumps({"x": CallOf(codecs.encode, "abc", "rot13")}, protocol=2)
    with pytest.raises(DataError, match="bytes written by the codec 'rot13'"):
        read_pickled_mapping(content, "file")
