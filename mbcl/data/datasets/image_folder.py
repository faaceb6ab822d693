"""Reader of arbitrary images in class folders: ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE`` (or ``val``)."""

from __future__ import annotations

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import Parts, find_parts

HOW_TO_GET = (
    "expected folders train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE); images of other sizes than "
    "data.image_size are resized, the shorter side to it, and the centre is taken; there is no download"
)


def find(request: DatasetRequest) -> Parts | None:
    """List the images of both parts; return None without a folder ``train``.

    Without ``image_size``, all images must be squares of the same size as the first one.

    Raises:
        DataError: if there is no test part, a folder cannot be read, or the size cannot be determined.
    """
    size = request.image_size
    return find_parts(request.root, "image_folder", HOW_TO_GET, size=size, resize=size is not None)


FILES = FolderSet(
    name="image_folder",
    find=find,
    mean=(0.485, 0.456, 0.406),  # statistics of ImageNet
    std=(0.229, 0.224, 0.225),
    sized=False,
    layout=HOW_TO_GET,
    no_download="there is nothing to fetch",
)
