"""The embedded data set: 1,797 real handwritten digits of 8 x 8 pixels, shipped with scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet, stratified_split
from mbcl.data.samples import Splits
from mbcl.data.views.recipe import ViewRecipe

RECIPE = ViewRecipe(
    crop_scale=(0.7, 1.0),
    rotation=10.0,
    flip_probability=0.0,  # a mirrored digit is no longer the same symbol
    grey_probability=0.0,
    blur_sigma=(0.1, 0.8),
    blur_probability=0.5,
)
"""Weak augmentation: the published crops (down to 8 % of the area) would keep only 2 x 2 of the 8 x 8 pixels.

With these strengths, retrieval among the 359 test images is about 0.05 with random weights, 0.25 on raw pixels, and
0.45 after ten epochs. So the task is neither trivial nor impossible.
"""


def read(request: DatasetRequest) -> Splits:
    """Read all digits. ``dir`` and ``download`` are ignored with a warning."""
    from sklearn.datasets import load_digits

    if request.dir is not None or request.download:
        warnings.warn("digits is embedded: data.dir and data.download are not used", UserWarning, stacklevel=2)
    stored = load_digits()
    # 17 grey levels, 0..16, rounded to bytes once: all later arithmetic starts from the same uint8 values
    images = torch.from_numpy(np.rint(stored.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(stored.target.astype(np.int64))
    digits = ImageSet(images, labels, "digits", RECIPE, mean=(0.3058,), std=(0.3762,), image_size=8)
    # There is no official test part. The fixed seed 0 gives every experiment the same one.
    train, test = stratified_split(labels, 0.2, 0, "digits test part")
    return Splits(digits.subset(train), digits.subset(test))
