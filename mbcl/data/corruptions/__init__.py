"""The fifteen standard image corruptions at five severities, generated on the fly for any image size.

Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
arXiv:1903.12261. They are built from operations of NumPy, SciPy, torch and Pillow. ``strengths.py`` holds their
parameters by severity and image size.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbcl.data.corruptions.blurs import defocus_blur, glass_blur, motion_blur, zoom_blur
from mbcl.data.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from mbcl.data.corruptions.draws import Array, Draws
from mbcl.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from mbcl.data.corruptions.strengths import SEVERITIES, STRENGTHS
from mbcl.data.corruptions.weather import brightness, fog, frost, snow
from mbcl.errors import ConfigError, nearest

_FUNCTIONS: tuple[Callable[..., Array], ...] = (
    gaussian_noise,
    shot_noise,
    impulse_noise,
    defocus_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
    snow,
    frost,
    fog,
    brightness,
    contrast,
    elastic_transform,
    pixelate,
    jpeg_compression,
)
_BY_NAME = {function.__name__: function for function in _FUNCTIONS}

CORRUPTIONS = tuple(_BY_NAME)
"""Names of the corruptions, in the order of the publication: noise, blur, weather, digital."""

_CHUNK_ELEMENTS = 2**20


def corrupt(images: Tensor, *, corruption: str, severity: int, seed: int, positions: Tensor) -> Tensor:
    """Corrupt images: a pure function of (seed, corruption, severity, position) and of the image.

    The result does not depend on the batch, and global random generators are neither read nor advanced. The random
    numbers are the same for all severities, so a higher severity is the same corruption with more strength.

    Args:
        images: (N, C, H, W) uint8 on any device, grey or colour. The tests cover sides of 8 to 224 pixels.
        corruption: a name in ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: seed of the random numbers.
        positions: (N,) int64, the data-set positions of the images.

    Returns:
        (N, C, H, W) uint8 on the device of ``images``. The computation runs on the CPU in float64.

    Raises:
        ConfigError: if the corruption or the severity is unknown, or if shapes and dtypes do not match.

    Example:
        >>> white = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
        >>> found = corrupt(white, corruption="contrast", severity=3, seed=0, positions=torch.arange(2))
        >>> torch.equal(found, white)
        True
    """
    if corruption not in _BY_NAME:
        raise ConfigError(f"unknown corruption {corruption!r}; {nearest(corruption, CORRUPTIONS)}")
    check_severity(severity)
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape[1:]:
        raise ConfigError(f"images must be (N, C, H, W) uint8, found {tuple(images.shape)} {images.dtype}")
    if positions.shape != (len(images),) or positions.dtype != torch.int64:
        raise ConfigError(
            f"{len(images)} images need as many int64 positions, found {tuple(positions.shape)} {positions.dtype}"
        )
    if len(images) == 0:
        return images.clone()
    side = min(images.shape[2:])
    strengths = {key: strength.at(severity, side) for key, strength in STRENGTHS[corruption].items()}
    if corruption == "pixelate":
        strengths["severity"] = severity
    results = []
    size = max(1, _CHUNK_ELEMENTS // images[0].numel())
    for part, part_positions in zip(images.cpu().split(size), positions.cpu().split(size), strict=True):
        draws = Draws(seed, corruption, part_positions.tolist())
        values = _BY_NAME[corruption](part.numpy() / 255, draws, **strengths)
        results.append(torch.from_numpy(np.rint(values * 255).clip(0, 255).astype(np.uint8)))
    return torch.cat(results).to(images.device)


def check_severity(severity: int) -> None:
    """Raise an error for a severity that is not an integer in 1..5.

    Raises:
        ConfigError: with the value.
    """
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ConfigError(f"severity must be a whole number in 1..5, found {severity!r}")


__all__ = ["CORRUPTIONS", "SEVERITIES", "check_severity", "corrupt"]
