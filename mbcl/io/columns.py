"""Columns of Parquet files, and of the folders in which Hugging Face's ``datasets`` saves data sets, as arrays.

``PATH:COLUMN`` names one column of either, wherever an ``.npy`` file may be named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbcl.errors import ConfigError, nearest
from mbcl.io.npz import read_array

Columns = dict[str, NDArray[Any]]


def is_table(path: Path | str) -> bool:
    """Tell whether a path is that of a Parquet file, or of a folder that is not named as an array."""
    suffix = Path(path).suffix
    return suffix == ".parquet" or (suffix not in (".npy", ".npz") and Path(path).is_dir())


def split_source(source: Path | str) -> tuple[Path, str | None]:
    """Split ``PATH:COLUMN`` into path and column; the column of any other path is None."""
    path, _, column = str(source).rpartition(":")
    if path and column and is_table(path) and not Path(source).exists():
        return Path(path), column
    return Path(source), None


def read_column(source: Path | str) -> NDArray[Any]:
    """Read the array of an ``.npy`` file or of ``PATH:COLUMN``.

    Raises:
        ConfigError: if it cannot be read.
    """
    path, column = split_source(source)
    return read_array(path) if column is None else read_columns(path, (column,))[column]


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = (), *, others: bool = True) -> Columns:
    """Read columns by name: those with lists of one length as (N, D) arrays, others as (N,) arrays.

    Args:
        path: a ``.parquet`` file, or the folder that ``datasets.Dataset.save_to_disk`` wrote.
        required: names that must exist.
        optional: names that may exist.
        others: whether columns with other names, which are not read, may exist.

    Raises:
        ConfigError: if the file or folder cannot be read, a column is missing or unknown, or has another content.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(f"{path}: reading tables needs pyarrow; pip install pyarrow") from error
    try:
        table = _read_parquet(path, None) if path.suffix == ".parquet" else _read_folder(path)
        names = table.column_names
        allowed = (*required, *optional)
        for name in () if others else names:
            if name not in allowed:
                raise ConfigError(f"{path}: unknown column {name!r}; {nearest(name, allowed)}")
        for name in required:
            if name not in names:
                raise ConfigError(f"{path}: holds no column {name!r}; it holds {', '.join(names) or 'nothing'}")
        wanted = [name for name in names if name in allowed]
        table = _read_parquet(path, wanted) if path.suffix == ".parquet" else table
        return {name: _array(path, name, table[name]) for name in wanted}
    except FileNotFoundError as error:  # whose text is the path alone
        raise ConfigError(f"{path}: cannot be read: No such file or directory") from error
    except ConfigError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _read_parquet(path: Path, columns: list[str] | None) -> Any:
    """Return the table of some columns; without columns an empty one of all, which tells their names."""
    from pyarrow import parquet

    dataset = parquet.ParquetDataset(path)
    return dataset.schema.empty_table() if columns is None else dataset.read(columns)


def _read_folder(path: Path) -> Any:
    """Return the table of a data set in a folder of ``datasets``, mapped into memory.

    Raises:
        ConfigError: if the folder holds no data set, several splits, or rows in an order of their own.
    """
    import pyarrow

    splits, state = path / "dataset_dict.json", path / "state.json"
    try:
        if splits.is_file():
            names = json.loads(splits.read_text())["splits"]
            raise ConfigError(f"{path}: holds the splits {', '.join(names)}; name one: {path / names[0]}")
        if not state.is_file():
            raise ConfigError(f"{path}: expected a folder that datasets' save_to_disk wrote; it has no state.json")
        content = json.loads(state.read_text())
        files = [path / Path(entry["filename"]).name for entry in content["_data_files"]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a folder of datasets: {type(error).__name__}: {error}") from error
    if content.get("_indices_files") or content.get("_indices_data_files"):
        raise ConfigError(f"{path}: the rows have an order of their own; save flatten_indices() of the data set")
    tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files]
    if not tables:
        raise ConfigError(f"{path}: the data set is empty")
    return pyarrow.concat_tables(tables)


def _array(path: Path, name: str, column: Any) -> NDArray[Any]:
    """Return a column as (N,) or (N, D) array.

    Raises:
        ConfigError: if it holds nulls, lists of several lengths, or values that are no numbers and no strings.
    """
    from pyarrow import compute, types

    if column.null_count:
        raise ConfigError(f"{path}: {name}: {column.null_count} rows are null")
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        lengths = compute.min_max(compute.list_value_length(column)).as_py()
        if lengths["min"] is None or lengths["min"] != lengths["max"] or types.is_nested(column.type.value_type):
            raise ConfigError(f"{path}: {name} must hold lists of one length, found {column.type}")
        # Chunk by chunk: the lists of a whole column may have more values than one Arrow array can count.
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return np.concatenate(chunks).reshape(len(column), lengths["min"])
    array: NDArray[Any] = column.to_numpy()
    if array.dtype.kind != "O":
        return array
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        raise ConfigError(f"{path}: {name}: expected numbers, strings or lists of numbers, found {column.type}")
    return array.astype(str)
