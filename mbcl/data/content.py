"""The identity of a data set: a digest of its samples, labels and classes, wherever its files are.

The digest of the pixels is that of a pack of them (:mod:`mbcl.data.packs.pack_file`), which knows it without reading.
Other samples are known by what they were made from (:attr:`mbcl.data.samples.SampleSet.sources`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.data.images import ImageSet
from mbcl.data.samples import Splits

_CHUNK = 4096
"""Images that are hashed at a time."""


def content_digest(splits: Splits, ids: Iterable[NDArray[np.generic] | None] = ()) -> str:
    """Return 32 hexadecimal digits that are equal for equal samples, labels, classes and ids in the same order."""
    parts = splits.train, splits.test
    digest = hashlib.sha256((splits.pixels_sha256 or _samples_sha256(splits)).encode())
    digest.update(json.dumps([len(splits.train), [part.classes for part in parts]]).encode())
    for array in (*(part.labels.numpy() for part in parts), *ids):
        digest.update(b"-" if array is None else f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:32]


def pixels_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an ``.npy`` file of uint8 pixels."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _samples_sha256(splits: Splits) -> str:
    if not isinstance(splits.train, ImageSet):
        return hashlib.sha256(json.dumps(dict(splits.train.sources), sort_keys=True).encode()).hexdigest()
    number, shape = len(splits.train) + len(splits.test), splits.train.images.shape[1:]
    digest = hashlib.sha256(pixels_header((number, *shape)))
    for part in (splits.train, splits.test):
        assert isinstance(part, ImageSet)
        for positions in torch.arange(len(part)).split(_CHUNK):
            digest.update(part.pixels(positions).cpu().contiguous().numpy().data)
    return digest.hexdigest()
