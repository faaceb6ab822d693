"""The contact sheets of the corruptions: some digits (8 pixels), and a photograph (224 pixels).

    python benchmarks/corruption_sheet.py [--out docs]

A row a corruption, the clean images first, then severities 1 to 5; written as corruptions_digits.png and
corruptions_photograph.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image
from torch import Tensor

from mbcl.data import CORRUPTIONS, corrupt, load

TITLE = 130  # pixels
GAP = 6
LINE = 14


def sheet(images: Tensor, side: int) -> Image.Image:
    """A row a corruption: its name, the images, and the images at five severities, ``side`` pixels each."""
    num, step = len(images), side + 1
    block = num * step + GAP
    rows = Image.new("RGB", (TITLE + 6 * block, LINE + len(CORRUPTIONS) * (step + GAP // 2)), "white")
    pen = ImageDraw.Draw(rows)
    for column, word in enumerate(("clean", "1", "2", "3", "4", "5")):
        pen.text((TITLE + column * block, 1), word, fill="black")
    for row, corruption in enumerate(CORRUPTIONS):
        top = LINE + row * (step + GAP // 2)
        pen.text((4, top + side // 2 - 6), corruption, fill="black")
        for severity in range(6):
            found = images
            if severity:
                positions = torch.arange(num)
                found = corrupt(images, corruption=corruption, severity=severity, seed=0, positions=positions)
            for place, image in enumerate(found):
                pixels = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
                picture = Image.fromarray(np.ascontiguousarray(pixels))
                smaller = side < picture.width
                picture = picture.resize((side, side), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)
                rows.paste(picture, (TITLE + severity * block + place * step, top))
    return rows


def main() -> None:
    """Write both sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    digits = load("digits").test.images[:4]
    sheet(digits, 32).quantize(64).save(out / "corruptions_digits.png", optimize=True)
    part = Image.fromarray(load_sample_image("flower.jpg")[40:376, 130:466])
    flower = torch.from_numpy(np.array(part.resize((224, 224), Image.Resampling.BOX)))
    sheet(flower.permute(2, 0, 1)[None], 60).save(out / "corruptions_photograph.png", optimize=True)
    for name in ("corruptions_digits.png", "corruptions_photograph.png"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
