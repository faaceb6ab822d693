"""Columns of Parquet files as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mbcl.errors import ConfigError, nearest


def read_columns(path: Path | str, rows: Sequence[str], values: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read the columns of a Parquet file by name.

    Args:
        path: the file.
        rows: allowed columns whose values are lists of one length, which become (N, D) arrays.
        values: allowed columns with one number or string for each row, (N,).

    Raises:
        ConfigError: if the file cannot be read, has a column with another name, a null, or lists of several lengths.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
    except FileNotFoundError as error:  # whose text is the path alone
        raise ConfigError(f"{path}: cannot be read: No such file or directory") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    allowed = (*rows, *values)
    for name in table.column_names:
        if name not in allowed:
            raise ConfigError(f"{path}: unknown column {name!r}; {nearest(name, allowed)}")
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.null_count:
            raise ConfigError(f"{path}: {name}: {column.null_count} rows are null")
        if name in values:
            array = column.to_numpy(zero_copy_only=False)
            columns[name] = array.astype(str) if array.dtype.kind == "O" else array
            continue
        lengths = set(column.value_lengths().to_pylist()) if pyarrow.types.is_nested(column.type) else set()
        if len(lengths) != 1:
            raise ConfigError(f"{path}: {name} must hold lists of one length, found {column.type}")
        columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).copy()
    return columns
