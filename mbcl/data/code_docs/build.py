"""The matrices of ``code_docs``, made once for the installed versions and stored in this machine's cache."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbcl.data.code_docs.functions import Function, functions_of
from mbcl.data.code_docs.sources import Package, installed, versions
from mbcl.data.code_docs.vectors import vectors
from mbcl.data.packs.node_cache import cache_folder, locked
from mbcl.errors import ConfigError, DataError
from mbcl.io.files import atomic_write
from mbcl.io.npz import read_arrays
from mbcl.seeding import derive

FORMAT = 3
"""Changes with what is extracted, so that older matrices in a cache are not read."""
TEST_SHARE = 0.2
_ARRAYS = ("x1", "x2", "labels", "files", "in_test", "text", "titles")
_QUIET_SECONDS, _LINE_SECONDS = 2.0, 10.0
"""Seconds before the first line of progress, and between two lines."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class CodeDocs:
    """All pairs.

    Args:
        arrays: ``x1``, ``x2`` (N, dim) float32: code and docstring; ``labels`` (N,) the packages; ``files`` (N,);
            ``in_test`` (N,) bool; ``text``, a digest of all words; ``titles``, uint8, the pairs for people in UTF-8, a
            line each.
        packages: their names; labels number them.
        sources: the versions, and the digest of the words.
    """

    arrays: Arrays
    packages: tuple[str, ...]
    sources: dict[str, str]


def load(dim: int) -> CodeDocs:
    """Return the pairs of the installed packages, from the cache if this machine has made them before.

    Raises:
        DataError: if the packages have too few functions with docstrings.
    """
    packages = installed()
    found = versions(packages)
    key = hashlib.sha256(json.dumps([FORMAT, dim, found], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "code_docs"
    path = folder / f"{key}.npz"
    arrays = None
    try:
        arrays = _read(path, warns=False)  # without the lock, which others may hold for minutes for other pairs
        if arrays is None:
            with locked(folder):
                arrays = _read(path)
                if arrays is None:
                    arrays = make(packages, dim)
                    with atomic_write(path) as stream:
                        np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        problem = f"code_docs: {folder} cannot be used: {error.strerror or error}"
        warnings.warn(f"{problem}; the packages are parsed again in every process", UserWarning, stacklevel=2)
        arrays = arrays or make(packages, dim)
    names = tuple(package.name for package in packages)
    return CodeDocs(arrays, names, {**found, "text": str(arrays["text"])})


def _read(path: Path, *, warns: bool = True) -> Arrays | None:
    """Return the arrays of a file of the cache; None if it does not exist or, with a warning, if it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_arrays(path, _ARRAYS, others=False)
    except ConfigError as error:
        if warns:
            warnings.warn(f"code_docs: {error}; it is made again", UserWarning, stacklevel=2)
        return None


def make(packages: Sequence[Package], dim: int) -> Arrays:
    """Parse the packages and compute the matrices.

    The test part is a fifth of the files, each by its own name, so that other packages do not change where a file is.
    Of pairs with the same words of code or of docstring, in any order, only the first stays.
    """
    functions, labels, files, in_test = _parse(packages)
    if not functions:
        raise DataError("code_docs: the installed packages have no functions with docstrings")
    x1 = vectors([function.code for function in functions], ~in_test, dim)
    x2 = vectors([function.doc for function in functions], ~in_test, dim)
    text = hashlib.blake2b(repr(functions).encode(), digest_size=8).hexdigest()
    titles = np.frombuffer("\n".join(each.title for each in functions).encode("utf-8", "replace"), dtype=np.uint8)
    arrays: Arrays = {"x1": x1, "x2": x2, "labels": labels, "files": files, "in_test": in_test}
    return {**arrays, "text": np.array(text), "titles": titles}


def _parse(
    packages: Sequence[Package],
) -> tuple[list[Function], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the distinct functions with their packages, their files, and whether they are in the test part."""
    functions: list[Function] = []
    rows: list[tuple[int, int, bool]] = []
    seen: tuple[set[tuple[str, ...]], set[tuple[str, ...]]] = (set(), set())
    show = _Progress(sum(len(package.files) for package in packages), len(packages))
    files = ((label, name, path) for label, package in enumerate(packages) for name, path in package.files)
    with _without_collection():
        for number, (label, name, path) in enumerate(files, 1):
            show(number)
            try:
                source = path.read_bytes()
            except OSError:  # the record of a package may name files that were removed
                continue
            in_test = derive(0, f"code_docs test file {name}") < TEST_SHARE * 2**63
            for function in functions_of(source):
                code, doc = tuple(sorted(function.code)), tuple(sorted(function.doc))
                if code in seen[0] or doc in seen[1]:
                    continue
                seen[0].add(code)
                seen[1].add(doc)
                functions.append(function)
                rows.append((label, number, in_test))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return functions, table[:, 0].copy(), table[:, 1].copy(), table[:, 2] == 1


@contextmanager
def _without_collection() -> Iterator[None]:
    """Switch the search for cyclic garbage off: a syntax tree has none, and the search is half the time of parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Progress:
    """Progress on stderr, if parsing takes long."""

    def __init__(self, num_files: int, num_packages: int) -> None:
        self._num_files = num_files
        self._text = f"files of {num_packages} packages parsed, once for these versions"
        self._next = time.monotonic() + _QUIET_SECONDS

    def __call__(self, done: int) -> None:
        """Show that so many files are done, if it is time to."""
        if time.monotonic() >= self._next:
            sys.stderr.write(f"code_docs: {done:,} of {self._num_files:,} {self._text}\n")
            self._next = time.monotonic() + _LINE_SECONDS
