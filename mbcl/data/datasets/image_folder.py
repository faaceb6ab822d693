"""Reader of arbitrary images in class folders: ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE`` (or ``val``)."""

from __future__ import annotations

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import Splits
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import Parts, image_dimensions, list_class_folders, subfolders, train_and_test
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import DataError

HOW_TO_GET = (
    "expected folders train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE); images of other sizes than "
    "data.image_size are resized, the shorter side to it, and the centre is taken; there is no download"
)
RECIPE = ViewRecipe()


def find(request: DatasetRequest) -> Parts | None:
    """List the images of both parts; return None without a folder ``train``.

    Without ``image_size``, all images must be squares of the same size as the first one.

    Raises:
        DataError: if there is no test part, a folder cannot be read, or the size cannot be determined.
    """
    folders = None if request.root is None else train_and_test(request.root, "image_folder", HOW_TO_GET)
    if folders is None:
        return None
    train, test = folders
    classes = subfolders(train)
    listings = list_class_folders(train, classes), list_class_folders(test, classes)
    size = request.image_size
    if size is None:
        first = listings[0].paths[0]
        width, height = image_dimensions(first)
        if width != height:
            raise DataError(f"{first}: found {width} x {height} pixels, not a square; data.image_size says the side")
        size = width
    return Parts(train.parent, *listings, classes, size, resize=request.image_size is not None)


FILES = FolderSet(
    name="image_folder",
    find=find,
    mean=(0.485, 0.456, 0.406),  # statistics of ImageNet
    std=(0.229, 0.224, 0.225),
    recipe=RECIPE,
    sized=False,
)


def read(request: DatasetRequest) -> Splits:
    """Read both parts.

    Raises:
        DataError: if a file is missing or damaged; the one-line message names it.
        ConfigError: if ``download`` is set.
    """
    return FILES.demanded(request, layout=HOW_TO_GET, no_download="there is nothing to fetch")
