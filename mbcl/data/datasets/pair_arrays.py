"""Reader of pairs from a user's own arrays: ``.npz``, ``.npy`` or Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.pairs import PairSet
from mbcl.data.samples import Splits
from mbcl.errors import ConfigError, DataError
from mbcl.io.columns import Columns, read_columns
from mbcl.io.npz import read_array, read_arrays

SIDES = ("x1", "x2")
BY_ROW = ("labels", "groups", "texts")
ARCHIVE, TRAIN_TABLE, TEST_TABLE = "pairs.npz", "train.parquet", "test.parquet"
_TEST = "_test"
ARRAY_FILES = tuple(f"{name}{part}.npy" for part in ("", _TEST) for name in (*SIDES, *BY_ROW))
HOW_TO_GET = (
    f"expected a .npz file with x1 (N, D1) and x2 (N, D2), and optionally labels, groups and texts (N,), and the same "
    f"with {_TEST} for a test part; or a folder with {ARCHIVE}, or with x1.npy, x2.npy, ...; or a .parquet file with "
    f"these columns, or a folder with {TRAIN_TABLE} and {TEST_TABLE}"
)


def read(request: DatasetRequest) -> Splits:
    """Read the pairs; without a test part in the files, split off a share of the pairs, always the same.

    Raises:
        DataError: if a file is missing, damaged, or does not match.
    """
    path = request.root
    if path is None:
        raise DataError(f"pairs: data.dir is not given; {HOW_TO_GET}")
    try:
        train, test = _read_parts(path)
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"pairs: {error}") from error
    classes = _classes(path, train, test)
    sources = {"arrays": _digest(train, test)}

    def part(columns: Columns, suffix: str) -> PairSet:
        return _pairs(path, columns, suffix, classes, sources, request.dropout)

    if test is not None:
        splits = Splits(part(train, ""), part(test, _TEST))
        if splits.train.channels != splits.test.channels:
            raise DataError(
                f"{path}: sides of {splits.train.channels} numbers, in the test part {splits.test.channels}"
            )
        return splits
    whole = part(train, "")
    positions, held_out = whole.split(request.test, 0, "test part of pairs")
    return Splits(whole.subset(positions), whole.subset(held_out))


def _read_parts(path: Path) -> tuple[Columns, Columns | None]:
    """Read the arrays of the training part, and of the test part if the files have one, both by their own names."""
    if path.is_dir():
        if (path / ARCHIVE).is_file():
            return _parts(_archive(path / ARCHIVE))
        if (path / TRAIN_TABLE).is_file():
            test = path / TEST_TABLE
            return _table(path / TRAIN_TABLE), _table(test) if test.is_file() else None
        found = {file.removesuffix(".npy"): path / file for file in ARRAY_FILES if (path / file).is_file()}
        if not found:
            raise DataError(f"pairs: {path} holds none of the files; {HOW_TO_GET}")
        return _parts({name: read_array(file) for name, file in found.items()})
    readers: dict[str, Callable[[Path], Columns]] = {".npz": _archive, ".parquet": _table}
    if path.suffix not in readers:
        raise DataError(f"pairs: {path}: {'not a file of pairs' if path.exists() else 'does not exist'}; {HOW_TO_GET}")
    return _parts(readers[path.suffix](path))


def _archive(path: Path) -> Columns:
    names = (*SIDES, *BY_ROW)
    return read_arrays(path, SIDES, (*BY_ROW, *(f"{name}{_TEST}" for name in names)), others=False)


def _table(path: Path) -> Columns:
    return read_columns(path, SIDES, BY_ROW, others=False)


def _parts(columns: Columns) -> tuple[Columns, Columns | None]:
    """Divide arrays by their names into those of the training and the test part."""
    train = {name: array for name, array in columns.items() if not name.endswith(_TEST)}
    test = {name.removesuffix(_TEST): array for name, array in columns.items() if name.endswith(_TEST)}
    return train, test or None


def _pairs(
    path: Path,
    columns: Columns,
    suffix: str,
    classes: NDArray[Any] | None,
    sources: dict[str, str],
    dropout: float,
) -> PairSet:
    """Check the arrays of a part and build its set."""
    for name in SIDES:
        if name not in columns:
            raise DataError(f"{path}: there is no {name}{suffix}; {HOW_TO_GET}")
    x1, x2 = (_side(path, f"{name}{suffix}", columns[name]) for name in SIDES)
    num = len(x1)
    if len(x2) != num:
        raise DataError(f"{path}: x1{suffix} has {num} rows, x2{suffix} has {len(x2)}")
    for name in set(columns) & set(BY_ROW):
        if columns[name].shape != (num,) or columns[name].dtype.kind not in "iuUS":
            raise DataError(
                f"{path}: {name}{suffix} must be a whole number or string for each of {num} rows, found "
                f"{columns[name].shape} {columns[name].dtype}"
            )
    groups = columns.get("groups")
    labels = np.zeros(num, dtype=np.int64) if classes is None else np.searchsorted(classes, columns["labels"])
    return PairSet(
        torch.from_numpy(x1),
        torch.from_numpy(x2),
        torch.from_numpy(labels.astype(np.int64)),
        "pairs",
        groups=None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1].astype(np.int64)),
        dropout=dropout,
        labelled=classes is not None,
        sources=sources,
        texts=tuple(map(str, columns["texts"].tolist())) if "texts" in columns else (),
    )


def _side(path: Path, name: str, x: NDArray[Any]) -> NDArray[np.float32]:
    """Return a side as float32."""
    if x.ndim != 2 or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise DataError(f"{path}: {name} must be (N, D) numbers, found {x.shape} {x.dtype}")
    with np.errstate(over="ignore"):
        rows = x.astype(np.float32)
    if len(invalid := np.flatnonzero(~np.isfinite(rows).all(axis=1))):
        raise DataError(f"{path}: {name}: {len(invalid)} rows are not finite in float32, the first is {invalid[0]}")
    return rows


def _classes(path: Path, train: Columns, test: Columns | None) -> NDArray[Any] | None:
    """Return the distinct labels of both parts, ascending; None if there are none."""
    parts = [part for part in (train, test) if part is not None]
    labels = [part["labels"] for part in parts if "labels" in part]
    if len(labels) not in (0, len(parts)):
        raise DataError(f"{path}: only one of the training and the test part has labels")
    if len({each.dtype.kind in "US" for each in labels}) > 1:
        raise DataError(f"{path}: labels are {labels[0].dtype}, labels{_TEST} are {labels[1].dtype}")
    return np.unique(np.concatenate(labels)) if labels else None


def _digest(*parts: Columns | None) -> str:
    """Return a digest of all arrays with their names and shapes."""
    digest = hashlib.blake2b(digest_size=8)
    for columns in parts:
        for name, array in sorted((columns or {}).items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    return digest.hexdigest()
