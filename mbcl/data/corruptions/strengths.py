"""Strengths of the corruptions: the published ones for 32 and for 224 pixels, with interpolation between.

The published tables are those of CIFAR-10-C and of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking neural
network robustness to common corruptions and perturbations", arXiv:1903.12261). Between 32 and 224 pixels, strengths are
interpolated geometrically in the side of the image. Below 32 and above 224 pixels, lengths scale with the side and
other strengths are constant. Our own numbers, of similar magnitude, replace the published ones where a published table
does not increase with every severity (glass, motion, snow, fog, elastic), or where our operation has other parameters
(defocus, glass, frost, elastic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SMALL, LARGE = 32, 224
SEVERITIES = (1, 2, 3, 4, 5)

Five = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Strength:
    """One parameter at five severities.

    Args:
        small: values for images of 32 pixels; above 0.
        large: values for images of 224 pixels; above 0.
        pixels: whether the parameter is a length in pixels.
    """

    small: Five
    large: Five
    pixels: bool = False

    def at(self, severity: int, side: int) -> float:
        """Return the value for images of ``side`` pixels at a severity in 1..5."""
        low, high = self.small[severity - 1], self.large[severity - 1]
        weight = min(max(math.log(side / SMALL) / math.log(LARGE / SMALL), 0.0), 1.0)
        scale = side / min(max(side, SMALL), LARGE) if self.pixels else 1.0
        return float(low * (high / low) ** weight * scale)


STRENGTHS: dict[str, dict[str, Strength]] = {
    "gaussian_noise": {"deviation": Strength((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))},
    "shot_noise": {"photons": Strength((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))},
    "impulse_noise": {"share": Strength((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))},
    "defocus_blur": {"radius": Strength((0.8, 1.0, 1.2, 1.4, 1.7), (3, 4, 6, 8, 10), pixels=True)},
    "glass_blur": {
        "sigma": Strength((0.1, 0.25, 0.4, 0.42, 0.45), (0.7, 0.9, 1.0, 1.1, 1.5), pixels=True),
        "reach": Strength((0.5, 0.6, 0.8, 1.1, 1.4), (1.4, 2.0, 3.5, 4.2, 5.7), pixels=True),
    },
    "motion_blur": {
        "radius": Strength((6, 6, 7, 8, 9), (10, 15, 15, 15, 20), pixels=True),
        "sigma": Strength((1.0, 1.5, 2.0, 2.25, 2.5), (3, 5, 8, 12, 15), pixels=True),
    },
    "zoom_blur": {"zoom": Strength((0.05, 0.10, 0.15, 0.20, 0.25), (0.10, 0.15, 0.20, 0.25, 0.30))},
    "snow": {
        "mean": Strength((0.1, 0.1, 0.18, 0.27, 0.35), (0.1, 0.2, 0.55, 0.55, 0.55)),
        "deviation": Strength((0.2, 0.2, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0.3)),
        "zoom": Strength((1, 1, 1.75, 2.25, 1.25), (3, 2, 4, 4.5, 2.5)),
        "threshold": Strength((0.6, 0.5, 0.55, 0.6, 0.65), (0.5, 0.5, 0.9, 0.85, 0.85)),
        "radius": Strength((8, 10, 10, 12, 14), (10, 12, 12, 12, 12), pixels=True),
        "sigma": Strength((3, 4, 4, 6, 12), (4, 4, 8, 8, 12), pixels=True),
        "keep": Strength((0.95, 0.9, 0.88, 0.84, 0.8), (0.8, 0.7, 0.68, 0.62, 0.55)),
    },
    "frost": {"ice": Strength((0.3, 0.45, 0.6, 0.7, 0.8), (0.55, 0.7, 0.8, 0.88, 0.95))},
    "fog": {
        "density": Strength((0.2, 0.5, 0.75, 1.0, 1.5), (1.5, 2.0, 2.5, 2.8, 3.3)),
        "decay": Strength((3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4)),
    },
    "brightness": {"shift": Strength((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))},
    "contrast": {"keep": Strength((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))},
    "elastic_transform": {
        "corners": Strength((0.9, 1.0, 1.1, 1.2, 1.3), (4.0, 4.5, 5.0, 5.5, 6.0), pixels=True),
        "wobble": Strength((0.2, 0.35, 0.5, 0.65, 0.8), (1.2, 1.7, 2.2, 2.7, 3.2), pixels=True),
        "smooth": Strength((2.0, 1.9, 1.6, 1.3, 1.0), (6, 5.5, 5, 4.5, 4), pixels=True),
    },
    "pixelate": {"share": Strength((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))},
    "jpeg_compression": {"quality": Strength((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))},
}
"""Parameters of every corruption, by the keyword arguments of its function."""
