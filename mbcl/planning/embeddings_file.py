"""Reader of embeddings files: ``.npz``, Parquet and folders of ``datasets`` with a column for each array, or two files.

Letters: N samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError, PlanError
from mbcl.io.columns import Columns, is_table, read_column, read_columns, split_source
from mbcl.io.npz import read_arrays
from mbcl.plan import Embeddings

FLOATS = ("float16", "float32", "float64")
ROW_COLUMNS = ("labels", "apart", "together")
"""Columns with a value for each row of the embeddings, in their order."""
NAMES = "files"
"""Column with a name for each row, for the reader of the file; a plan does not need it."""

_SAVE = "np.savez('embeddings.npz', z1=content['z1'].numpy(), z2=content['z2'].numpy())"
OTHERS = {
    **dict.fromkeys((".pt", ".pth", ".bin"), ("torch", f"content = torch.load(FILE, weights_only=True); {_SAVE}")),
    ".safetensors": ("safetensors", f"content = safetensors.torch.load_file(FILE); {_SAVE}"),
}
"""Other formats of embeddings by suffix: their library, and the lines that convert a file."""


@dataclass(frozen=True, eq=False)
class Table:
    """The content of embeddings files; row p is data-set position p.

    Args:
        embeddings: in float32 or float64 (float16 is converted to float32).
        labels: (N,) int64 classes, numbered from 0, or None.
        apart, together: (N,) ids, or None.
    """

    embeddings: Embeddings
    labels: Tensor | None = None
    apart: NDArray[Any] | None = None
    together: NDArray[Any] | None = None


def read_embeddings(path: Path | str) -> tuple[Embeddings, Tensor | None]:
    """Read the embeddings of a whole data set, and the classes of its samples if the file has labels."""
    table = read_table([path])
    return table.embeddings, table.labels


def read_table(paths: Sequence[Path | str]) -> Table:
    """Read the embeddings of a whole data set, and what else the files hold about its samples.

    Args:
        paths: one ``.npz`` or Parquet file with ``z1`` and ``z2``, (N, D) float16, float32 or float64; ``indices``,
            (N,) integers, the data-set position of each row, ``arange(N)`` if omitted; ``labels``, (N,) of any sortable
            type; ``apart`` and ``together``, (N,) whole numbers or strings. A folder that ``datasets`` saved, with
            these columns; others are not read. Or two sources, of z1 and of z2: ``.npy`` files, or columns of a
            Parquet file or folder, PATH:COLUMN. The widths of z1 and z2 may differ.

    Raises:
        ConfigError: if a file does not match or holds arrays with other names; the message has the file, the found
            and the allowed value.
    """
    path = paths[0] if len(paths) == 1 else " and ".join(map(str, paths))
    columns = _read_columns(paths)
    z1, z2 = columns.pop("z1"), columns.pop("z2")
    for name, array in (("z1", z1), ("z2", z2)):
        if array.dtype.name not in FLOATS:
            raise ConfigError(f"{path}: {name} is {array.dtype}, expected {', '.join(FLOATS)}")
    num_rows = len(z1) if z1.ndim else 0
    indices = columns.pop("indices", None)
    if indices is not None and (indices.shape != (num_rows,) or indices.dtype.kind not in "iu"):
        raise ConfigError(
            f"{path}: indices are {indices.shape} {indices.dtype}, expected one integer for each of {num_rows} rows"
        )
    for name, column in columns.items():
        if column.shape != (num_rows,):
            raise ConfigError(f"{path}: {name} are {column.shape}, expected one for each of {num_rows} rows")
    columns.pop(NAMES, None)
    positions = np.arange(num_rows) if indices is None else indices.astype(np.int64)
    try:
        embeddings = Embeddings(torch.from_numpy(z1), torch.from_numpy(z2), torch.from_numpy(positions))
        ordered = embeddings.ordered(num_rows)
    except PlanError as error:
        raise ConfigError(f"{path}: {error}") from error
    order = np.argsort(positions, kind="stable")
    labels = columns.pop("labels", None)
    classes = None if labels is None else torch.from_numpy(_classes(path, labels)[order])
    return Table(ordered, classes, **{name: column[order] for name, column in columns.items()})


def _classes(path: Path | str, labels: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) the labels numbered from 0."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        invalid_rows = np.flatnonzero(~np.isfinite(labels))
        raise ConfigError(
            f"{path}: labels: {len(invalid_rows)} of {len(labels)} are not finite, the first in row {invalid_rows[0]}"
        )
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _read_columns(paths: Sequence[Path | str]) -> Columns:
    """Read the arrays of the files by name."""
    sources = [split_source(path) for path in paths]
    are_columns = [column is not None or path.suffix == ".npy" for path, column in sources]
    if are_columns == [True, True]:
        return {name: read_column(path) for name, path in zip(("z1", "z2"), paths, strict=True)}
    if are_columns != [False]:
        given = " ".join(map(str, paths))
        raise ConfigError(
            "--embeddings: expected one .npz or .parquet file or a folder of datasets, or two of .npy files and "
            f"PATH:COLUMN, found {given}"
        )
    path = sources[0][0]
    if path.suffix in OTHERS:
        library, lines = OTHERS[path.suffix]
        raise ConfigError(f"{path}: a file of {library}, which is not read; write it as .npz first: {lines}")
    optional = ("indices", *ROW_COLUMNS, NAMES)
    if is_table(path):
        return read_columns(path, ("z1", "z2"), optional, others=path.suffix != ".parquet")
    return read_arrays(path, ("z1", "z2"), optional, others=False)
