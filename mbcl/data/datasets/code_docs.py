"""Functions and their docstrings from the packages that are installed beside mbcl: pairs without a download."""

from __future__ import annotations

import warnings

import torch

from mbcl.data.code_docs import build
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.pairs import PairSet
from mbcl.data.samples import Splits


def read(request: DatasetRequest) -> Splits:
    """Read all pairs: side 1 is the code, side 2 the docstring, labels are packages, groups are files.

    ``dir`` is ignored with a warning.
    """
    if request.dir is not None:
        warnings.warn("code_docs is made from installed packages: data.dir is not used", UserWarning, stacklevel=2)
    made = build.load(request.dim)
    arrays = {name: torch.from_numpy(array) for name, array in made.arrays.items() if name not in ("text", "titles")}
    texts = tuple(made.arrays["titles"].tobytes().decode().split("\n"))
    pairs = PairSet(
        arrays["x1"],
        arrays["x2"],
        arrays["labels"],
        "code_docs",
        groups=arrays["files"],
        dropout=request.dropout,
        classes=made.packages,
        sources=made.sources,
        texts=texts,
    )
    in_test = arrays["in_test"]
    return Splits(pairs.subset((~in_test).nonzero()[:, 0]), pairs.subset(in_test.nonzero()[:, 0]))
