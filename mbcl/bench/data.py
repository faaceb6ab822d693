"""``mbcl bench data``: views per second of whole-batch augmentation and of the usual pipeline, one image at a time.

Letters: N images, B images of a batch, S pixels a side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mbcl import __version__
from mbcl.bench.measure import check_device, environment
from mbcl.data import ImageSet, ViewRecipe, make_views
from mbcl.errors import pluralize
from mbcl.functional import check_count
from mbcl.io.store import open_store, write_text
from mbcl.seeding import torch_generator

FILE = "data.json"
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_MIN_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class DataBenchSettings:
    """The options of ``mbcl bench data``; its ``--help`` describes them."""

    sizes: Sequence[int]
    num: int
    batch_size: int
    workers: Sequence[int]
    repeats: int
    threads: int
    device: str
    out: str | None

    def check(self) -> None:
        """Check the range of every option.

        Raises:
            ConfigError: if a value is out of range; one line with the value and what is allowed.
        """
        for option, value in (("--repeats", self.repeats), ("--threads", self.threads)):
            check_count(option, value)
        check_count("--batch-size", self.batch_size, least=2)
        check_count("--num", self.num, least=self.batch_size)
        for size in self.sizes:
            check_count("--sizes", size, least=_MIN_SIZE)
        for workers in self.workers:
            check_count("--workers", workers, least=0)
        check_device(self.device)


@dataclass(frozen=True)
class Row:
    """The speed of one pipeline on images of one size S: views per second of the fastest and of the slowest repeat.

    The fastest one counts, because other load on the machine can only slow a repeat down.
    """

    size: int
    pipeline: str
    views: float
    least: float


def bench_data(settings: DataBenchSettings) -> list[Row]:
    """Measure all pipelines, print a table, and write ``data.json`` if ``settings.out`` names a folder.

    Raises:
        ConfigError: if a setting is out of range.
    """
    settings.check()
    store = open_store(settings.out) if settings.out else None
    console = Console(highlight=False)
    rows: list[Row] = []
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        for size in settings.sizes:
            rows += _rows(images_of(settings.num, size), settings)
    finally:
        torch.set_num_threads(before)
    console.print(_table(rows, settings))
    if store:
        content = {"version": __version__, "environment": environment(settings.device), "settings": asdict(settings)}
        write_text(store, FILE, json.dumps(content | {"rows": list(map(asdict, rows))}, indent=1))
        console.print(f"{store.uri}/{FILE}", soft_wrap=True, markup=False)
    return rows


def images_of(num: int, size: int) -> ImageSet:
    """Make random images, (N, 3, S, S) uint8; the speed of the pipelines does not depend on their content."""
    generator = torch_generator(0, "bench/images")
    pixels = torch.randint(0, 256, (num, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(num, dtype=torch.int64)
    return ImageSet(pixels, labels, "bench", ViewRecipe(), mean=_MEAN, std=_STD, image_size=size)


def _rows(images: ImageSet, settings: DataBenchSettings) -> Iterator[Row]:
    size, device = settings.batch_size, settings.device
    pipelines = {f"whole batches, {device}": partial(whole_batches, images, size, device)}
    for workers in settings.workers:
        pipelines[f"one image at a time, {pluralize(workers, 'worker')}"] = partial(_usual, images, size, workers)
    for name, run in pipelines.items():
        run()  # warm-up: loads libraries, and the workers' code into the file cache
        rates = []
        for _ in range(settings.repeats):
            start = time.perf_counter()
            num = run()
            rates.append(num / (time.perf_counter() - start))
        yield Row(images.image_size, name, max(rates), min(rates))


def whole_batches(images: ImageSet, batch_size: int, device: str) -> int:
    """Make two views of every image with :func:`mbcl.data.make_views`, pixels on the device; return their number."""
    images, num = images.to(device), 0
    for positions in torch.arange(len(images)).split(batch_size):
        num += len(make_views(images.pixels(positions), positions, images=images, seed=0, epoch=0, view=(0, 1)))
    if device == "cuda":
        torch.cuda.synchronize()
    return num


def _usual(images: ImageSet, batch_size: int, workers: int) -> int:
    loader = torch.utils.data.DataLoader(UsualViews(images), batch_size=batch_size, num_workers=workers)
    return sum(len(first) + len(second) for first, second in loader)


class UsualViews(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of one image at a time, by torchvision on Pillow images with the published chain and strengths."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision.transforms import v2

        size, recipe = images.image_size, images.recipe
        radius = max(1, min(round(3 * recipe.blur_sigma[1]), (size - 1) // 2))
        self._pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._chain = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=recipe.crop_scale, ratio=recipe.crop_ratio),
                v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                v2.RandomGrayscale(recipe.grey_probability),
                v2.GaussianBlur(2 * radius + 1, sigma=recipe.blur_sigma),
                v2.RandomHorizontalFlip(recipe.flip_probability),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(images.mean, images.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        """Return both views, (3, S, S) float32 each."""
        from PIL import Image

        if row >= len(self):
            raise IndexError(row)
        picture = Image.fromarray(self._pixels[row])
        return self._chain(picture), self._chain(picture)


def _table(rows: Sequence[Row], settings: DataBenchSettings) -> Table:
    table = Table(title=f"views a second, best of {settings.repeats}; batches of {settings.batch_size}")
    for column in ("size", "pipeline", "views a second", "of one at a time, 0 workers"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    base_views = {row.size: row.views for row in rows if row.pipeline.endswith(" 0 workers")}
    for row in rows:
        ratio = f"{row.views / base_views[row.size]:.1f}" if row.size in base_views else "-"
        table.add_row(str(row.size), row.pipeline, f"{row.views:,.0f}", ratio)
    return table
