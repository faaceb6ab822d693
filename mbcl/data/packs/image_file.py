"""Decoding of one image file to 8 bits.

Letters: S pixels per side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mbcl.data.messages import one_line
from mbcl.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # an allowlist: Pillow starts Ghostscript for EPS content
_DEEP = 16
_ORIENTATION = 0x0112
_TWELVE_BITS = "which would keep a few grey levels only; data.bits says how many bits are significant"

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Decoding:
    """How an image file becomes S x S pixels.

    Args:
        size: S.
        resize: resize images of any size to S x S with the usual evaluation transform, torchvision's ``Resize(S)``
            (shorter side to S, bilinear, antialiased) and ``CenterCrop(S)``; otherwise other sizes are refused.
        exif: turn images as their EXIF orientation says; the published code, like torchvision's ``ImageFolder``, does
            not.
        bits: significant bits of the values of 16-bit images; None for 16, where images that use fewer than 13 are
            refused.
    """

    size: int
    resize: bool = False
    exif: bool = False
    bits: int | None = None


def square_side(path: Path, advice: str = "") -> int:
    """Return the side of a square image in pixels; only the file's header is read.

    Raises:
        DataError: if the file is not an image, or not a square; ``advice`` ends the message.
    """
    from PIL import Image

    with _wrap_decoder_errors(path), Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width != height:
            raise DataError(f"{path}: found {width} x {height} pixels, not a square{advice}")
        return width


def read_image(path: Path, decoding: Decoding) -> Pixels:
    """Decode one image to (S, S, 3) uint8.

    Raises:
        DataError: if the file is not an image, has another size, or has values that 8 bits cannot keep.
    """
    from PIL import Image
    from torchvision.transforms import functional as transforms

    size = decoding.size
    with _wrap_decoder_errors(path), Image.open(path, formats=FORMATS) as image:
        if image.size != (size, size) and not decoding.resize:
            width, height = image.size
            raise DataError(
                f"{path}: expected {size} x {size} pixels, found {width} x {height}; the data set "
                f"image_folder takes any with data.image_size"
            )
        colour = _to_eight_bits(image, path, decoding.bits).convert("RGB")
        if decoding.exif:
            colour = _turned(colour, _orientation(image, path))
        return np.asarray(transforms.center_crop(transforms.resize(colour, [size]), [size]))


def _to_eight_bits(image: Image.Image, path: Path, bits: int | None) -> Image.Image:
    """Convert an image to 8 bits per channel; Pillow alone would silently clip deeper values at 255, or cut them off.

    Raises:
        DataError: if the range of the values is not known, or so small that nearly nothing is left of it.
    """
    from PIL import Image

    rawmode = _rawmode(image)
    if image.mode[0] not in "IF":
        if ";16" in rawmode:
            _check_deep_colour(image, path, bits)
        return image
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")):
        raise DataError(f"{path}: pixels of mode {image.mode}, whose range is not known; expected 8 or 16 bits")
    scaled = rawmode.startswith("L")  # Pillow scales the values of a PGM to 16 bits, unless its largest value is 65535
    significant = 12 if rawmode == "I;12" else _DEEP if scaled else bits or _DEEP
    values = np.asarray(image)
    largest = int(values.max())
    if largest >> significant:
        raise DataError(f"{path}: found the value {largest:,}, which has more than {significant} bits (data.bits)")
    if bits is None and significant == _DEEP and not scaled and 0 < largest < 1 << 12:
        raise DataError(f"{path}: 16-bit values of at most {largest:,}, {_TWELVE_BITS}")
    return Image.fromarray((values >> (significant - 8)).astype(np.uint8))


def _check_deep_colour(image: Image.Image, path: Path, bits: int | None) -> None:
    """Refuse colours of 16 bits that use fewer: Pillow gives the upper 8 bits only.

    Raises:
        DataError: naming the file.
    """
    if bits not in (None, _DEEP):
        raise DataError(f"{path}: 16-bit colour, of which the upper 8 bits are read, but data.bits is {bits}")
    colour = image.convert("RGB") if image.mode == "RGBA" else image
    if bits is None and int(np.asarray(colour).max()) < 1 << 4:
        raise DataError(f"{path}: 16-bit colour with values below 4,096, of which 8 bits would keep 16 levels only")


def _rawmode(image: Image.Image) -> str:
    """Return the name of the pixels' format in the file; empty if the decoder does not say."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image.Image, path: Path) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, if there is none.

    Raises:
        DataError: if the EXIF data cannot be read.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # of damaged data
        reason = f"its EXIF data cannot be read ({one_line(error)}); data.exif: false ignores them"
        raise DataError(f"{path}: {reason}") from error


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image turned and mirrored by an EXIF orientation; other numbers than 2 to 8 leave it as it is."""
    from PIL import Image

    turn = Image.Transpose
    ways = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_270)
    methods = dict(enumerate((*ways, turn.TRANSVERSE, turn.ROTATE_90), 2))
    return image.transpose(methods[orientation]) if orientation in methods else image


@contextmanager
def _wrap_decoder_errors(path: Path) -> Iterator[None]:
    """Convert any exception of a decoder into a one-line DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise many exception types for damaged files
        reason = one_line(error).removesuffix(f" {str(path)!r}")
        raise DataError(f"{path}: not a readable image: {reason}") from error
