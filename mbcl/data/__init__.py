"""In-memory data sets of images and pairs, their splits, and on-device augmentation."""

from mbcl.data.corrupted.official_sets import (
    CORRUPTED,
    check_complete,
    check_corrupted,
    corrupted_available,
    load_corrupted,
    pack_corrupted,
)
from mbcl.data.corruptions import CORRUPTIONS, corrupt
from mbcl.data.datasets.registry import DATASETS, DatasetSpec, describe, load
from mbcl.data.images import ImageSet
from mbcl.data.pairs import PairSet
from mbcl.data.samples import SampleSet, Splits, split_validation
from mbcl.data.views.augment import clean_views, make_views
from mbcl.data.views.recipe import IDENTITY, ViewRecipe

__all__ = [
    "CORRUPTED",
    "CORRUPTIONS",
    "DATASETS",
    "IDENTITY",
    "ImageSet",
    "DatasetSpec",
    "PairSet",
    "SampleSet",
    "Splits",
    "ViewRecipe",
    "check_complete",
    "check_corrupted",
    "clean_views",
    "corrupt",
    "corrupted_available",
    "describe",
    "load",
    "load_corrupted",
    "make_views",
    "pack_corrupted",
    "split_validation",
]
