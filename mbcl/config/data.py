"""The ``data`` block of an experiment."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.data import DATASETS, ViewRecipe
from mbcl.data.datasets.request import LARGEST_SIZE, LEAST_BITS, LEAST_SIZE, MOST_BITS
from mbcl.errors import ConfigError


def _as_tuple(value: Any) -> Any:
    """Convert a list of YAML; blocks are compared and hashed."""
    return tuple(value) if isinstance(value, list) else value


Range = Annotated[tuple[float, float], BeforeValidator(_as_tuple)]
Strengths = Annotated[tuple[float, float, float, float], BeforeValidator(_as_tuple)]


class Views(ConfigModel):
    """Augmentation strengths of the views; null for those of the data set, for photographs the published ones."""

    crop_scale: Range | None = None
    """Lowest and highest area of the crop, as a share of the image, e.g. `[0.2, 1.0]`; published `[0.08, 1.0]`."""
    crop_ratio: Range | None = None
    """Lowest and highest width / height of the crop; published `[0.75, 1.3333]`."""
    rotation: float | None = None
    """Largest rotation of the crop in degrees, at most 180; published 0."""
    flip_probability: float | None = None
    """Probability of a horizontal flip; published 0.5."""
    jitter: Strengths | None = None
    """Strengths of brightness, contrast, saturation and hue (at most 0.5); published `[0.4, 0.4, 0.2, 0.1]`."""
    jitter_probability: float | None = None
    """Probability of the colour jitter; published 0.8."""
    grey_probability: float | None = None
    """Probability that a colour image becomes grey; published 0.2."""
    blur_sigma: Range | None = None
    """Lowest and highest standard deviation of the blur, in pixels of the view; published `[0.1, 2.0]`."""
    blur_probability: float | None = None
    """Probability of the blur; published 1."""

    @model_validator(mode="after")
    def _in_range(self) -> Views:
        try:
            self.of(ViewRecipe())
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("views: ")) from error
        return self

    def of(self, recipe: ViewRecipe) -> ViewRecipe:
        """Return a recipe with the given strengths instead of its own."""
        given = {each.name: getattr(self, each.name) for each in fields(ViewRecipe)}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})


LOAD_KEYS = ("dir", "image_size", "max_samples", "download", "verify", "exif", "bits", "dim", "dropout", "test")
"""The keys that :func:`mbcl.data.load` takes."""
_PAIR_KEYS = ("dim", "dropout", "test")
_IMAGE_KEYS = ("image_size", "download", "exif", "bits", "views")


class Data(ConfigModel):
    """The data set and its splits."""

    name: str = "digits"
    """The data set, a name of `mbcl list datasets`."""
    dir: str | None = None
    """The folder of its files, or a URI with a pack or official files; `digits` and `code_docs` need none. Of `pairs` a
    file or a folder."""
    image_size: int | None = Field(default=None, ge=LEAST_SIZE, le=LARGEST_SIZE)
    """Side of the views in pixels, to which `image_folder` resizes; null: the images' own."""
    max_samples: int | None = Field(default=None, ge=2)
    """Only so many training samples, with the class proportions of the whole, the same for every seed; the test split
    stays whole."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training samples that becomes the validation split; of pairs whole groups."""
    download: bool = False
    """Fetch missing files with torchvision, where it can."""
    verify: Literal["warn", "strict"] = "warn"
    """Whether unofficial files, files that changed since they were packed, and images that are not read are a warning
    or an error."""
    exif: bool = True
    """Turn images of `image_folder` as their EXIF orientation says; `false` as published."""
    bits: int | None = Field(default=None, ge=LEAST_BITS, le=MOST_BITS)
    """Significant bits of 16-bit images of `image_folder`, such as 12; null: 16, and values that use fewer than 13 are
    refused."""
    views: Views = Views()
    """Augmentation strengths."""
    apart: str | None = None
    """`labels`, or the path of an `.npy` file with an id for each training sample, in the order of `mbcl.data.load`
    with the same `max_samples`: samples of one id share no batch where that is possible, for every sampler."""
    together: str | None = None
    """The same: every batch has samples of one id."""
    dim: int | None = Field(default=None, ge=2, le=4096)
    """Of `code_docs` only: numbers of a side; 256 if not given."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of pairs only: rate at which training and planning drop numbers of both sides; 0 if not given."""
    test: float | None = Field(default=None, gt=0, lt=1)
    """Of `pairs` only: share of the test part, where the files have none; 0.2 if not given."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_pairs(cls, content: Any) -> Any:
        name = content.get("name") if isinstance(content, dict) else None
        if not isinstance(name, str) or name not in DATASETS:
            return content
        return {**(DATASETS[name].pairs or {}), **content}

    @model_serializer(mode="wrap")
    def _without_keys_of_others(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the keys of pairs out of experiments on images."""
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
            if getattr(self, key) != type(self).model_fields[key].default:
                raise PathConfigError(key, f"found {getattr(self, key)!r}, but {self.name} holds no images")
        for key in ("apart", "together"):
            value = getattr(self, key)
            if value is not None and value != "labels" and not value.endswith(".npy"):
                raise PathConfigError(key, f"found {value!r}, allowed: labels, or the path of an .npy file of ids")
        return self
