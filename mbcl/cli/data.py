"""``mbcl data``: pack the images of a folder once, and check what a data set's folder holds."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbcl.data import ImageSet, Splits
    from mbcl.data.packs.folder_sets import Packed

_SHARE = 0.1  # progress where nobody looks on: a line for every tenth


def add_data(commands: Any) -> None:
    """Add ``data`` with what can be done to the commands."""
    data = commands.add_parser("data", help="pack the images of a folder once; check a data set's files")
    kinds = data.add_subparsers(title="what is done", metavar="WHAT", required=True)
    pack = kinds.add_parser(
        "pack",
        help="decode the images of folders once, into one file",
        description="Decode the images of a data set in folders once, into one file of bytes that is mapped into "
        "memory; training, sweeps and evaluation then read no JPEG. It lies in the folder mbcl-pack of the data set "
        "and is used by itself. If a file of the folder changes, a warning says so and the folder is read. A corrupted "
        "set in folders gets one such file for each corruption and severity.",
    )
    _add_place(pack)
    pack.add_argument("--out", metavar="DIR", help="the pack's folder, to be given as data.dir (default: see above)")
    pack.add_argument("--force", action="store_true", help="pack again even if there is a whole pack of these files")
    pack.set_defaults(run=_pack)
    check = kinds.add_parser(
        "check",
        help="read a data set whole, and say what it holds",
        description="Read every file of a data set and say what it holds: images and classes, what is not official, "
        "images that are there twice, corruptions that are missing. Exit code 2 if a file is missing or damaged.",
    )
    _add_place(check)
    check.add_argument("--clean-dir", metavar="DIR", help="for a corrupted set: the folder of the clean one")
    check.add_argument("--verify", choices=("warn", "strict"), default="warn", help="strict: only official files")
    check.set_defaults(run=_check)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="NAME", required=True, help="as `mbcl list datasets` has them")
    command.add_argument("--data-dir", metavar="DIR", help="the folder of its files")
    command.add_argument("--image-size", metavar="S", type=int, help="what image_folder brings images to, pixels")


# -- pack ----------------------------------------------------------------------------------------------------------


def _pack(arguments: argparse.Namespace) -> int:
    from mbcl.data import CORRUPTED, DATASETS, pack_corrupted, request_of
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
    request = request_of(dir=arguments.data_dir, image_size=arguments.image_size)
    options = {"out": out, "force": arguments.force}
    try:
        with _progress() as on_progress:
            if folders is None:
                for packed in pack_corrupted(
                    arguments.data, dir=arguments.data_dir, on_progress=on_progress, **options
                ):
                    _say_packed(packed)
            else:
                _say_packed(folders.pack(request, on_progress=on_progress, **options))
    except OSError as error:
        what = f"{error.filename}: the pack cannot be written: {error.strerror}"
        raise ConfigError(f"{what}; --out chooses another folder") from error
    return 0


def _say_packed(packed: Packed) -> None:
    if not packed.new:
        sys.stdout.write(f"{packed.path}: a whole pack of these files is there already; --force packs them again\n")
        return
    raw = (packed.num_train + packed.num_test) * 3 * packed.size**2
    size = sum(path.stat().st_size for path in packed.path.parent.glob(f"{packed.path.stem}[.-]*"))
    train = f"{packed.num_train:,} training and " if packed.num_train else ""
    sys.stdout.write(
        f"{packed.path}: {train}{packed.num_test:,} test images of {packed.size} x {packed.size}; {size:,} bytes, "
        f"{size / raw:.3f} of the raw pixels; {packed.seconds:.1f} s\n"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where a person looks on, else a line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        told = 0.0

        def line(done: int, num: int) -> None:
            nonlocal told
            if done == num or done >= told + _SHARE * num:
                told = done
                sys.stderr.write(f"{done:,} of {num:,} images\n")

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
    splits = load(arguments.data, dir=arguments.data_dir, image_size=arguments.image_size, verify=arguments.verify)
    for title, part in (("training", splits.train), ("test", splits.test)):
        counts = part.labels.bincount()
        counts = counts[counts > 0]
        side = " x ".join(str(size) for size in part.images.shape[1:])
        sys.stdout.write(
            f"{title + ' part':14} {len(part):,} images of {side}, {len(counts)} classes of {int(counts.min()):,} to "
            f"{int(counts.max()):,}\n"
        )
    for line in _twins(splits):
        sys.stdout.write(line + "\n")
    return 0


def _twins(splits: Splits) -> Iterator[str]:
    """Lines about images that are there more than once, byte for byte."""
    places: dict[bytes, list[tuple[str, int, int]]] = defaultdict(list)
    for title, part in (("training", splits.train), ("test", splits.test)):
        for row, (image, label) in enumerate(zip(part.images.numpy(), part.labels.tolist(), strict=True)):
            places[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append((title, row, label))
    repeated = [found for found in places.values() if len(found) > 1]
    both = [found for found in repeated if len({title for title, _, _ in found}) > 1]
    classes = [found for found in repeated if len({label for _, _, label in found}) > 1]
    yield f"{'twice':14} {len(repeated):,} images"
    for words, found in (("in both parts", both), ("in two classes", classes)):
        first = f", first {_named(splits, found[0])}" if found else ""
        yield f"{words:14} {len(found):,} images{first}"


def _named(splits: Splits, found: list[tuple[str, int, int]]) -> str:
    def name(part: ImageSet, row: int) -> str:
        return f" ({part.files[row]})" if part.files else ""

    parts = {"training": splits.train, "test": splits.test}
    return " and ".join(f"{title} {row}{name(parts[title], row)} of class {label}" for title, row, label in found[:2])


def _check_corrupted(arguments: argparse.Namespace) -> int:
    from mbcl.data import CORRUPTED, check_complete, corrupted_available, load, load_corrupted
    from mbcl.errors import ConfigError

    for option, value in (("--data-dir", arguments.data_dir), ("--clean-dir", arguments.clean_dir)):
        if value is None:
            raise ConfigError(f"{option} is not given; {arguments.data}: {CORRUPTED[arguments.data].how_to_get}")
    check_complete(arguments.data, dir=arguments.data_dir, verify=arguments.verify)
    clean = load(CORRUPTED[arguments.data].clean, dir=arguments.clean_dir, verify=arguments.verify).test
    for corruption, severities in corrupted_available(arguments.data, arguments.data_dir).items():
        for severity in severities:
            found = load_corrupted(
                arguments.data,
                dir=arguments.data_dir,
                corruption=corruption,
                severity=severity,
                clean=clean,
                verify=arguments.verify,
            )
            distance = (found.images.float() - clean.images.float()).abs().mean()
            sys.stdout.write(
                f"{corruption:18} {severity}  {len(found):,} images, {distance:.1f} of 255 from the clean ones\n"
            )
    return 0
