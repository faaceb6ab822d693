"""Data sets in memory, their splits, and views of their images made on the device."""

from mbcl.data.catalogue import DATASETS, Source, describe, load, request_of
from mbcl.data.corrupted import (
    CORRUPTED,
    check_complete,
    check_corrupted,
    corrupted_available,
    corrupted_of,
    load_corrupted,
    pack_corrupted,
)
from mbcl.data.corruptions import CORRUPTIONS, corrupt
from mbcl.data.images import ImageSet, Splits, split_validation
from mbcl.data.recipe import IDENTITY, ViewRecipe
from mbcl.data.views import augment, clean, clean_views, make_views

__all__ = [
    "CORRUPTED",
    "CORRUPTIONS",
    "DATASETS",
    "IDENTITY",
    "ImageSet",
    "Source",
    "Splits",
    "ViewRecipe",
    "augment",
    "check_complete",
    "check_corrupted",
    "clean",
    "clean_views",
    "corrupt",
    "corrupted_available",
    "corrupted_of",
    "describe",
    "load",
    "load_corrupted",
    "make_views",
    "pack_corrupted",
    "request_of",
    "split_validation",
]
