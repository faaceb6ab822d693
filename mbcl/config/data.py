"""The ``data`` block of an experiment."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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


class Data(ConfigModel):
    """The data set and its splits."""

    name: str = "digits"
    """The data set, a name of `mbcl list datasets`."""
    dir: str | None = None
    """The folder of its files, or a URI with a pack or official files; `digits` needs none."""
    image_size: int | None = Field(default=None, ge=LEAST_SIZE, le=LARGEST_SIZE)
    """Side of the views in pixels, to which `image_folder` resizes; null: the images' own."""
    max_samples: int | None = Field(default=None, ge=2)
    """Only so many training images, with the class proportions of the whole, the same for every seed; the test split
    stays whole."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images that becomes the validation split."""
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
    """`labels`, or the path of an `.npy` file with an id for each training image, in the order of `mbcl.data.load` with
    the same `max_samples`: images of one id share no batch where that is possible, for every sampler."""
    together: str | None = None
    """The same: every batch has images of one id."""

    @model_validator(mode="after")
    def _known(self) -> Data:
        DATASETS.canonical(self.name)
        for key in ("apart", "together"):
            value = getattr(self, key)
            if value is not None and value != "labels" and not value.endswith(".npy"):
                raise PathConfigError(key, f"found {value!r}, allowed: labels, or the path of an .npy file of ids")
        return self
