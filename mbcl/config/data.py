"""The ``data`` block of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.data import DATASETS
from mbcl.data.datasets.request import LARGEST_SIZE, LEAST_SIZE


class Data(ConfigModel):
    """The data set and its splits.

    ``apart``, ``together``: ids of the training images, in the order of :func:`mbcl.data.load` with the same
    ``max_samples``, before the validation images are split off:
    ``labels`` for their classes, or the path of an ``.npy`` file of whole numbers or strings. Images of one id of
    ``apart`` share no batch where that is possible; every batch has images of one id of ``together``. They hold for
    every sampler, also for ``shuffle``.

    ``verify``: whether files that are not official (checksums, counts), or have changed since they were packed, cause a
    warning (``warn``) or an error (``strict``).
    """

    name: str = "digits"
    dir: str | None = None
    image_size: int | None = Field(default=None, ge=LEAST_SIZE, le=LARGEST_SIZE)
    max_samples: int | None = Field(default=None, ge=2)
    validation: float = Field(default=0.1, gt=0, lt=1)
    download: bool = False
    verify: Literal["warn", "strict"] = "warn"
    apart: str | None = None
    together: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Data:
        DATASETS.canonical(self.name)
        for key in ("apart", "together"):
            value = getattr(self, key)
            if value is not None and value != "labels" and not value.endswith(".npy"):
                raise PathConfigError(key, f"found {value!r}, allowed: labels, or the path of an .npy file of ids")
        return self
