"""The ``data`` block of an experiment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.data import DATASETS
from mbcl.data.datasets.request import LARGEST_SIZE, LEAST_SIZE

LOAD_KEYS = ("dir", "image_size", "max_samples", "download", "verify", "dim", "dropout", "test")
"""The keys that :func:`mbcl.data.load` takes."""
_PAIR_KEYS = ("dim", "dropout", "test")
_IMAGE_KEYS = ("image_size", "download")


class Data(ConfigModel):
    """The data set and its splits.

    ``apart``, ``together``: ids of the training samples, in the order of :func:`mbcl.data.load` with the same
    ``max_samples``, before the validation samples are split off:
    ``labels`` for their classes, or the path of an ``.npy`` file of whole numbers or strings. Images of one id of
    ``apart`` share no batch where that is possible; every batch has images of one id of ``together``. They hold for
    every sampler, also for ``shuffle``.

    ``verify``: whether files that are not official (checksums, counts), or have changed since they were packed, cause a
    warning (``warn``) or an error (``strict``).

    ``dim``, ``dropout``, ``test``: of pairs, see :func:`mbcl.data.load`. A set has them only if it is one of pairs with
    that key, so that they are no part of other experiments.
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
    dim: int | None = Field(default=None, ge=2, le=4096)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    test: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_pairs(cls, content: Any) -> Any:
        name = content.get("name") if isinstance(content, dict) else None
        if not isinstance(name, str) or name not in DATASETS:
            return content
        return {**(DATASETS[name].pairs or {}), **content}

    @model_serializer(mode="wrap")
    def _without_keys_of_others(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if value is not None or key not in _PAIR_KEYS}

    @model_validator(mode="after")
    def _known(self) -> Data:
        options = DATASETS[self.name].pairs
        for key in _PAIR_KEYS if options is None else set(_PAIR_KEYS) - set(options):
            if getattr(self, key) is not None:
                have = ", ".join(name for name in DATASETS if key in (DATASETS[name].pairs or {}))
                found = f"found {getattr(self, key)!r}, but {self.name} has no such key"
                raise PathConfigError(key, f"{found}; allowed for: {have}")
        for key in _IMAGE_KEYS if options is not None else ():
            if getattr(self, key):
                raise PathConfigError(key, f"found {getattr(self, key)!r}, but {self.name} holds no images")
        for key in ("apart", "together"):
            value = getattr(self, key)
            if value is not None and value != "labels" and not value.endswith(".npy"):
                raise PathConfigError(key, f"found {value!r}, allowed: labels, or the path of an .npy file of ids")
        return self
