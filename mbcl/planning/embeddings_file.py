"""Reader of embeddings files: ``.npz`` with ``z1``, ``z2``, and optionally ``indices`` and ``labels``.

Letters: N samples, D dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import ConfigError, PlanError
from mbcl.io.npz import read_arrays
from mbcl.plan import Embeddings

FLOATS = ("float16", "float32", "float64")


def read_embeddings(path: Path | str) -> tuple[Embeddings, Tensor | None]:
    """Read the embeddings of a whole data set, and the classes of its samples if the file has labels.

    Args:
        path: an ``.npz`` file with ``z1`` and ``z2``, (N, D) float16, float32 or float64; ``indices``, (N,) integers,
            the data-set position of each row, ``arange(N)`` if omitted; ``labels``, (N,) of any sortable type.

    Returns:
        Embeddings in float32 or float64 (float16 is converted to float32), where row p is data-set position p; (N,)
        int64 classes in the same order, numbered from 0, or None.

    Raises:
        ConfigError: if the file does not match or holds arrays with other names; the message has the file, the found
            and the allowed value.
    """
    arrays = read_arrays(path, ("z1", "z2"), ("indices", "labels"), others=False)
    z1, z2 = arrays.pop("z1"), arrays.pop("z2")
    for name, array in (("z1", z1), ("z2", z2)):
        if array.dtype.name not in FLOATS:
            raise ConfigError(f"{path}: {name} is {array.dtype}, expected {', '.join(FLOATS)}")
    num_rows = len(z1) if z1.ndim else 0
    indices, labels = arrays.get("indices"), arrays.get("labels")
    if indices is not None and (indices.shape != (num_rows,) or indices.dtype.kind not in "iu"):
        raise ConfigError(
            f"{path}: indices are {indices.shape} {indices.dtype}, expected one integer for each of {num_rows} rows"
        )
    if labels is not None and labels.shape != (num_rows,):
        raise ConfigError(f"{path}: labels are {labels.shape}, expected one for each of {num_rows} rows")
    positions = np.arange(num_rows) if indices is None else indices.astype(np.int64)
    try:
        embeddings = Embeddings(torch.from_numpy(z1), torch.from_numpy(z2), torch.from_numpy(positions))
        ordered = embeddings.ordered(num_rows)
    except PlanError as error:
        raise ConfigError(f"{path}: {error}") from error
    if labels is None:
        return ordered, None
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        invalid_rows = np.flatnonzero(~np.isfinite(labels))
        raise ConfigError(
            f"{path}: labels: {len(invalid_rows)} of {num_rows} are not finite, the first in row {invalid_rows[0]}"
        )
    classes = torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64))
    return ordered, classes[torch.argsort(embeddings.indices)]
