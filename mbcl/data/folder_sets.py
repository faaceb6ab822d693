"""Data sets whose images are files of their own: read from the files, or from a pack of them where there is one.

Letters: N images, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.data.folders import Listing, Parts, decode
from mbcl.data.images import ImageSet, Splits
from mbcl.data.packs import Pack, open_pack
from mbcl.data.recipe import ViewRecipe
from mbcl.data.request import Request


@dataclass(frozen=True, kw_only=True)
class FolderSet:
    """A data set of image files.

    Args:
        name: ours.
        find: the files that a request's folder holds, listed and checked; None if it holds no such set.
        mean: one number a channel, of pixels in [0, 1].
        std: likewise.
        recipe: default strengths of the views.
        sized: whether all images have one size; those of other sets are brought to ``data.image_size``.
        official_counts: of training and test images, where that is known.
    """

    name: str
    find: Callable[[Request], Parts | None]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    recipe: ViewRecipe
    sized: bool = True
    official_counts: tuple[int, int] | None = None

    def read(self, request: Request) -> Splits | None:
        """Both parts; None if there is neither a folder of this set nor a pack of it.

        Raises:
            DataError: if a file is missing or damaged; if the pack is; if the files are no longer those that were
                packed and ``request.verify`` is strict (otherwise that is a warning, and the files are read).
        """
        parts = self.find(request)
        pack = self._pack(request, parts)
        if pack is not None:
            splits = self._from_pack(pack)
            splits = Splits(splits.train.first(request.max_samples or len(splits.train)), splits.test)
            counts = len(pack.train.labels), len(pack.test.labels)
        elif parts is not None:
            chosen = parts.train.first(request.max_samples), parts.test
            splits = Splits(*(self._decoded(listing, parts) for listing in chosen))
            counts = len(parts.train), len(parts.test)
        else:
            return None
        if self.official_counts:
            where = parts.root if parts else pack and pack.path
            request.object_to_counts(f"{self.name}: {where}", counts, self.official_counts)
        return splits

    def pack_name(self, image_size: int | None) -> str:
        """What a pack of this set is called; those that are brought to a size have a pack for each."""
        return self.name if self.sized or image_size is None else f"{self.name}-{image_size}"

    def _pack(self, request: Request, parts: Parts | None) -> Pack | None:
        """The pack of the files, if there is one and it is theirs."""
        if request.root is None:
            return None
        places = [request.root] + ([parts.root] if parts and parts.root != request.root else [])
        packs = (open_pack(place, self.pack_name(request.image_size)) for place in places)
        pack = next((pack for pack in packs if pack), None)
        if pack is None or parts is None:
            return pack
        difference = pack.difference(parts)
        if difference is None:
            return pack
        request.object(
            f"{self.name}: {pack.path} is not used, the files have changed since they were packed: {difference}; "
            f"`mbcl data pack` packs them again"
        )
        return None

    def _from_pack(self, pack: Pack) -> Splits:
        pixels = torch.from_numpy(pack.pixels())
        border = len(pack.train.labels)
        images = pixels[:border], pixels[border:]
        found = zip(images, (pack.train, pack.test), strict=True)
        return Splits(*(self._set(i, torch.tensor(part.labels), part.files, pack.classes) for i, part in found))

    def _decoded(self, listing: Listing, parts: Parts) -> ImageSet:
        images, labels = decode(listing, size=parts.size, name=self.name, resize=parts.resize)
        return self._set(images, labels, listing.files, parts.classes)

    def _set(self, images: Tensor, labels: Tensor, files: tuple[str, ...], classes: Sequence[str]) -> ImageSet:
        return ImageSet(
            images,
            labels,
            self.name,
            self.recipe,
            mean=self.mean,
            std=self.std,
            image_size=images.shape[-1],
            classes=tuple(classes),
            files=files,
        )
