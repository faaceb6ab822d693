"""``mbcl data``: pack the images of a folder into one file, and check the files of a data set."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mbcl.cli.parser import Parser
from mbcl.errors import ConfigError, pluralize

if TYPE_CHECKING:
    from mbcl.data import SampleSet, Splits
    from mbcl.data.packs.folder_sets import Packed

_PROGRESS_STEP = 0.1  # without a terminal, print progress after each tenth of the images


def add_data(commands: Any) -> None:
    """Add ``data`` with its subcommands to the commands."""
    data = commands.add_parser("data", help="pack the images of a folder into one file; check the files of a data set")
    kinds = data.add_subparsers(title="subcommands", metavar="WHAT", required=True)
    pack = kinds.add_parser(
        "pack",
        help="decode the images of folders once and store them in one file",
        description="Decode the images of a data set in folders once and store them in one file of bytes, which is "
        "memory-mapped: training, sweeps and evaluation then decode no JPEG. The pack is stored in the data set's "
        "folder mbcl-pack and is used automatically. If a file of the data set changes, the folder is read instead, "
        "with a warning. A corrupted set in folders gets one such file for each corruption and severity.",
    )
    _add_source(pack)
    pack.option("--out", "DIR", "folder of the pack, to be given as data.dir (default: see above)")
    pack.flag("--force", "pack again even if a complete pack of these files exists")
    pack.set_defaults(run=_pack)
    check = kinds.add_parser(
        "check",
        help="read a whole data set and summarise its content",
        description="Read every file of a data set and report images and classes, files that are not official, "
        "duplicate images and missing corruptions. The exit code is 2 if a file is missing or damaged.",
    )
    _add_source(check)
    check.option("--clean-dir", "DIR", "for a corrupted set: folder of the clean data set")
    check.option("--verify", None, "strict refuses files that are not official", "warn", choices=("warn", "strict"))
    check.set_defaults(run=_check)


def _add_source(command: Parser) -> None:
    command.option("--data", "NAME", "a name of `mbcl list datasets`", required=True)
    command.option("--data-dir", "DIR", "folder of its files")
    command.option("--image-size", "S", "size in pixels to which image_folder resizes and crops images", type=int)
    command.flag("--no-exif", "leave the images of image_folder as they are stored, as published (data.exif: false)")
    command.option("--bits", "N", "significant bits of 16-bit images of image_folder, e.g. 12", type=int)


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how images are read, by keys of the block ``data``."""
    return {"image_size": arguments.image_size, "exif": not arguments.no_exif, "bits": arguments.bits}


# -- pack ----------------------------------------------------------------------------------------------------------


def _pack(arguments: argparse.Namespace) -> int:
    from mbcl.data import CORRUPTED, DATASETS, pack_corrupted
    from mbcl.data.datasets.request import DatasetRequest
    from mbcl.errors import ConfigError
    from mbcl.io.store import local_path

    out = local_path(arguments.out) if arguments.out else None
    corrupted = arguments.data in CORRUPTED
    folders = None if corrupted else DATASETS[arguments.data].folders
    if folders is None and not corrupted:
        packable = [*(name for name in DATASETS if DATASETS[name].folders), *CORRUPTED]
        raise ConfigError(f"--data: {arguments.data} has no image files to pack; allowed: {', '.join(packable)}")
    if arguments.data_dir is None:
        files = CORRUPTED[arguments.data].how_to_get if corrupted else DATASETS[arguments.data].files
        raise ConfigError(f"--data-dir is not given; {files}")
    request = DatasetRequest(dir=arguments.data_dir, **_reading(arguments))
    options = {"out": out, "force": arguments.force}
    try:
        with _progress() as show:
            if folders is None:
                for packed in pack_corrupted(arguments.data, dir=arguments.data_dir, on_progress=show, **options):
                    _print_packed(packed)
            else:
                _print_packed(folders.pack(request, on_progress=show, **options))
    except OSError as error:
        what = f"{error.filename}: the pack cannot be written: {error.strerror}"
        raise ConfigError(f"{what}; --out chooses another folder") from error
    return 0


def _print_packed(packed: Packed) -> None:
    if not packed.new:
        sys.stdout.write(f"{packed.path}: a whole pack of these files is there already; --force packs them again\n")
        return
    raw = (packed.num_train + packed.num_test) * 3 * packed.size**2
    size = sum(path.stat().st_size for path in packed.path.parent.glob(f"{packed.path.stem}[.-]*"))
    train = f"{packed.num_train:,} training and " if packed.num_train else ""
    sys.stdout.write(
        f"{packed.path}: {train}{pluralize(packed.num_test, 'test image', ',')} of {packed.size} x {packed.size}; "
        f"{size:,} bytes, {size / raw:.3f} of the raw pixels; {packed.seconds:.1f} s\n"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, otherwise a line after each tenth."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        last_printed = 0.0

        def line(done: int, num: int) -> None:
            nonlocal last_printed
            if done == num or done >= last_printed + _PROGRESS_STEP * num:
                last_printed = done
                sys.stderr.write(f"{done:,} of {pluralize(num, 'image', ',')}\n")

        yield line
        return
    with Progress(console=console) as progress:
        task = progress.add_task("images", total=None)
        yield lambda done, num: progress.update(task, completed=done, total=num)


# -- check ---------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    from mbcl.data import CORRUPTED, load

    if arguments.data in CORRUPTED:
        return _check_corrupted(arguments)
    splits = load(arguments.data, dir=arguments.data_dir, verify=arguments.verify, **_reading(arguments))
    for title, part in (("training", splits.train), ("test", splits.test)):
        what = f"{pluralize(len(part), part.noun, ',')} of {part.shape_text}"
        sys.stdout.write(f"{title + ' part':14} {what}, {_describe_classes(part)}\n")
    if splits.train.sources:
        versions = ", ".join(f"{name} {version}" for name, version in splits.train.sources.items())
        sys.stdout.write(f"{'made from':14} {versions}\n")
    for line in _duplicate_lines(splits):
        sys.stdout.write(line + "\n")
    return 0


def _describe_classes(part: SampleSet) -> str:
    counts = part.labels.bincount()
    counts = counts[counts > 0]
    if not part.labelled:
        return "without labels"
    return f"{pluralize(len(counts), 'class')} of {int(counts.min()):,} to {int(counts.max()):,}"


def _duplicate_lines(splits: Splits) -> Iterator[str]:
    """Describe samples that occur more than once, byte for byte."""
    places_by_digest: dict[bytes, list[tuple[str, int, int]]] = defaultdict(list)
    for title, part in (("training", splits.train), ("test", splits.test)):
        for row, (content, label) in enumerate(zip(part.contents(), part.labels.tolist(), strict=True)):
            places_by_digest[hashlib.blake2b(content, digest_size=16).digest()].append((title, row, label))
    repeated = [places for places in places_by_digest.values() if len(places) > 1]
    across_parts = [places for places in repeated if len({title for title, _, _ in places}) > 1]
    across_classes = [places for places in repeated if len({label for _, _, label in places}) > 1]
    noun = splits.train.noun
    yield f"{'twice':14} {pluralize(len(repeated), noun, ',')}"
    for title, duplicates in (("in both parts", across_parts), ("in two classes", across_classes)):
        first = f", first {_describe(splits, duplicates[0])}" if duplicates else ""
        yield f"{title:14} {pluralize(len(duplicates), noun, ',')}{first}"


def _describe(splits: Splits, places: list[tuple[str, int, int]]) -> str:
    def name(part: SampleSet, row: int) -> str:
        return f" ({part.files[row]})" if part.files else ""

    parts = {"training": splits.train, "test": splits.test}
    return " and ".join(f"{title} {row}{name(parts[title], row)} of class {label}" for title, row, label in places[:2])


def _check_corrupted(arguments: argparse.Namespace) -> int:
    from mbcl.data import CORRUPTED, ImageSet, check_complete, corrupted_available, load, load_corrupted

    for option, value in (("--data-dir", arguments.data_dir), ("--clean-dir", arguments.clean_dir)):
        if value is None:
            raise ConfigError(f"{option} is not given; {arguments.data}: {CORRUPTED[arguments.data].how_to_get}")
    source = {"dir": arguments.data_dir, "verify": arguments.verify}
    check_complete(arguments.data, **source)
    clean = load(CORRUPTED[arguments.data].clean, dir=arguments.clean_dir, verify=arguments.verify).test
    assert isinstance(clean, ImageSet)
    for corruption, severities in corrupted_available(arguments.data, arguments.data_dir).items():
        for severity in severities:
            corrupted = load_corrupted(arguments.data, corruption=corruption, severity=severity, clean=clean, **source)
            distance = (corrupted.images.float() - clean.images.float()).abs().mean()
            sys.stdout.write(
                f"{corruption:18} {severity}  {pluralize(len(corrupted), 'image', ',')}, {distance:.1f} of 255 from "
                f"the clean ones\n"
            )
    return 0
