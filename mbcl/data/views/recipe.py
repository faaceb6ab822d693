"""Augmentation strengths of views."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbcl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """Strengths of the random transforms of a view. The defaults are the published ones for natural images.

    Args:
        crop_scale: lowest and highest crop area as a share of the image area, in (0, 1].
        crop_ratio: lowest and highest aspect ratio (width / height in pixels) of a crop, log-uniform.
        rotation: largest rotation of the crop in degrees, uniform in both directions.
        flip_probability: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation (factors uniform in [max(0, 1 - s), 1 + s]) and hue
            (shift uniform in [-s, s] turns, s at most 0.5). Images of one channel have neither saturation nor hue.
        jitter_probability: probability of colour jitter.
        grey_probability: probability that a colour image is converted to greyscale.
        blur_sigma: lowest and highest standard deviation of the Gaussian blur in output pixels, uniform.
        blur_probability: probability of Gaussian blur.

    Raises:
        ConfigError: if a value is out of range; the message contains the value.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: float = 0.0
    flip_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 1.0

    def __post_init__(self) -> None:
        _check_range("crop_scale", self.crop_scale, 0.0, 1.0)
        _check_range("crop_ratio", self.crop_ratio, 0.0, math.inf)
        _check_range("blur_sigma", self.blur_sigma, 0.0, math.inf)
        for name in ("flip_probability", "jitter_probability", "grey_probability", "blur_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"views: {name} must be in [0, 1], found {getattr(self, name)}")
        if not 0.0 <= self.rotation <= 180.0:
            raise ConfigError(f"views: rotation must be in [0, 180] degrees, found {self.rotation}")
        if len(self.jitter) != 4 or not all(0.0 <= strength < math.inf for strength in self.jitter):
            raise ConfigError(f"views: jitter must be four strengths of at least 0, found {self.jitter}")
        if self.jitter[3] > 0.5:
            raise ConfigError(f"views: the hue jitter must be at most 0.5 turns, found {self.jitter[3]}")

    @property
    def moves_pixels(self) -> bool:
        """Whether a geometric transform (crop, rotation or flip) can change the position of a pixel."""
        full_crop = self.crop_scale == (1.0, 1.0) and self.crop_ratio == (1.0, 1.0)
        return not full_crop or self.rotation > 0 or self.flip_probability > 0


def _check_range(name: str, limits: tuple[float, float], above: float, at_most: float) -> None:
    """Raise ConfigError unless ``above < low <= high <= at_most``, with a finite ``high``."""
    if len(limits) != 2 or not above < limits[0] <= limits[1] <= at_most or math.isinf(limits[1]):
        bound = "" if math.isinf(at_most) else f" <= {at_most:g}"
        raise ConfigError(f"views: {name} must be [low, high] with {above:g} < low <= high{bound}, found {limits}")


IDENTITY = ViewRecipe(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    grey_probability=0.0,
    blur_probability=0.0,
)
"""The recipe without any augmentation."""
