"""Data sets behind a URI: each machine copies what it reads once, into a folder of its own.

The first process of a machine that asks takes a lock, copies and checks; the others wait for it and find the copy. The
lock ends with the process that holds it, however that ends, and a copy gets its name when it is whole, so that after a
kill the next process copies again.

A copy is called by what it is a copy of: a pack by the digest of its ``NAME.json``, an official file by URI, size and
time of modification. What changes behind the URI is copied anew; a copy that was damaged later is replaced by a whole
one, never removed. The content of a pack is compared with its digest by its reader; that of an official file here, each
time it is asked for, with ``FILE.sha256``, which was written when it was copied.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mbcl.data.packs.pack_file import FOLDER, Pack, read_pack
from mbcl.errors import DataError
from mbcl.io.ownership import NO_LOCKS
from mbcl.io.store import ArrowStore

CACHE_VARIABLE = "MBCL_CACHE"
"""The environment variable that says where a machine keeps its copies."""


def cache_folder() -> Path:
    """Where this machine keeps copies: ``$MBCL_CACHE``, or else ``mbcl`` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mbcl"


def local_copy(
    uri: str, name: str, pack_name: str | None, official: Sequence[str], *, found_damaged: bool = False
) -> Path:
    """This machine's copy of a data set, made now if it is not there.

    Args:
        uri: of the folder of a pack, of one with a pack in ``mbcl-pack``, or of one with official files.
        name: of the data set.
        pack_name: of its pack; None where the set is never packed.
        official: names of official files, of which there may be any.
        found_damaged: its reader found the copy of a pack damaged. Its content is looked at again then, because another
            process may have found the same and have made it again, and only what is still damaged is copied anew.

    Returns:
        A local folder for the set's reader. A copy of official files that was damaged later is made again, with a
        warning.

    Raises:
        DataError: if the URI holds neither, cannot be read, or what was copied is not what its pack says; if the copy
            cannot be written.
        ConfigError: if no filesystem opens the URI.
    """
    store = ArrowStore(uri)
    try:
        for place in (f"{FOLDER}/", "") if pack_name else ():
            if store.stat(f"{place}{pack_name}.json") is not None:
                assert pack_name is not None
                return _copy_pack(store, place, pack_name, found_damaged)
        files = {file: facts for file in official if (facts := store.stat(file)) is not None}
        if files:
            return _copy_files(store, name, files)
    except OSError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: {uri} cannot be copied to {cache_folder()}: {reason}") from error
    expected = [f"a pack ({pack_name}.json, made by `mbcl data pack`)"] if pack_name else []
    expected += [f"official files ({', '.join(official)})"] if official else []
    raise DataError(f"{name}: {uri} holds no data to copy; expected {', or '.join(expected)}")


def _copy_pack(store: ArrowStore, place: str, name: str, found_damaged: bool) -> Path:
    written = store.read_bytes(f"{place}{name}.json")
    folder = cache_folder() / "packs" / f"{name}-{hashlib.sha256(written).hexdigest()[:16]}"
    pack = read_pack(written, folder / f"{name}.json", name)
    with _locked(folder):
        data = pack.path.with_name(pack.data["file"])
        whole = _is_whole(pack, written) if found_damaged else _seems_whole(pack)
        if not whole:  # copied over the old one, which is never removed: nobody who reads it finds it gone
            found = _copy(store, f"{place}{data.name}", data, pack.data["sha256"])
            if found != pack.data["sha256"]:
                raise DataError(
                    f"{store.uri}/{place}{data.name}: damaged, or another pack's: expected SHA-256 "
                    f"{pack.data['sha256']}, found {found}; nothing of it is kept"
                )
            _write(pack.path, iter([written]))
    return folder


def _seems_whole(pack: Pack) -> bool:
    """Whether files of the right size are there; their content is checked by whoever reads them, outside the lock."""
    data = pack.path.with_name(pack.data["file"])
    return pack.path.is_file() and data.is_file() and data.stat().st_size == pack.data["bytes"]


def _is_whole(pack: Pack, written: bytes) -> bool:
    """Whether the content of both files is that of the pack whose ``NAME.json`` is ``written``."""
    data = pack.path.with_name(pack.data["file"])
    return _sha256(pack.path) == hashlib.sha256(written).hexdigest() and _sha256(data) == pack.data["sha256"]


def _sha256(path: Path) -> str | None:
    """The SHA-256 of a file; None if it cannot be read, which a copy made anew may mend."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _copy_files(store: ArrowStore, name: str, files: dict[str, tuple[int, int]]) -> Path:
    key = hashlib.sha256(repr((store.uri, sorted(files.items()))).encode()).hexdigest()[:16]
    folder = cache_folder() / "files" / f"{name}-{key}"
    if all(_is_as_copied(folder / file) for file in files):
        return folder
    with _locked(folder):
        for file, (size, _) in files.items():
            path = folder / file
            if _is_as_copied(path):  # another process has copied it meanwhile
                continue
            if path.is_file() and _sum_of(path).is_file():
                found = f"{path}: its content is not what was copied"
                warnings.warn(f"{found}; this machine's copy is made again", UserWarning, stacklevel=2)
            sha256 = _copy(store, file, path)
            if path.stat().st_size != size:
                path.unlink()
                raise DataError(f"{store.uri}/{file}: it changed while it was copied; nothing of it is kept")
            _write(_sum_of(path), iter([sha256.encode()]))
    return folder


def _is_as_copied(path: Path) -> bool:
    """Whether an official file is there with the content that it had when it was copied."""
    found = _sha256(path)
    try:
        return found is not None and _sum_of(path).read_bytes() == found.encode()
    except OSError:
        return False


def _sum_of(path: Path) -> Path:
    """The file that says what SHA-256 an official file had when it was copied."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is making this folder's copy; then it is this one's turn to look."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
            alone = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            alone = False  # each process copies then, which is slow and as good
        folder.mkdir(exist_ok=True)
        for left in folder.glob(".*.tmp") if alone else ():  # by a process that was killed
            left.unlink(missing_ok=True)
        yield


def _copy(store: ArrowStore, source: str, path: Path, sha256: str | None = None) -> str:
    """Copy a file and return its SHA-256; with another than the one that is expected it does not get its name."""
    digest = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for piece in store.pieces(source):
            digest.update(piece)
            yield piece

    _write(path, pieces(), keep=lambda: sha256 in (None, digest.hexdigest()))
    return digest.hexdigest()


def _write(path: Path, pieces: Iterator[bytes], keep: Callable[[], bool] = lambda: True) -> None:
    """Write a file whole, if it is to be kept, or not at all."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        if keep():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
