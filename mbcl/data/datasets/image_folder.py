"""Reader of arbitrary images in class folders: ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE`` (or ``val``)."""

from __future__ import annotations

from functools import partial

from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import find_parts

HOW_TO_GET = (
    "expected folders train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE); images of other sizes than "
    "data.image_size are resized, the shorter side to it, and the centre is taken; there is no download"
)


FILES = FolderSet(
    name="image_folder",
    find=partial(find_parts, name="image_folder", layout=HOW_TO_GET),
    mean=(0.485, 0.456, 0.406),  # statistics of ImageNet
    std=(0.229, 0.224, 0.225),
    sized=False,
    layout=HOW_TO_GET,
    no_download="there is nothing to fetch",
)
