"""Node-local cache of data sets behind a URI: each machine copies what it reads once.

The first process on a machine takes a file lock, copies and verifies. The other processes wait for the lock and then
find the copy. The kernel releases the lock when its process ends in any way, and a copy is renamed to its final name
only when it is complete. So after a kill the next process copies again.

The cache key identifies the source: a pack by the digest of its manifest ``NAME.json``, official files by URI, size and
modification time. A source that changes behind the URI therefore gets a new copy. A damaged copy is replaced
atomically, never removed, because other processes may have it open. The reader of a pack verifies its digest. The
digest of an official file is verified here on every request, against ``FILE.sha256`` from the time of the copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mbcl.data.messages import one_line
from mbcl.data.packs.pack_file import FOLDER, Pack, read_pack
from mbcl.errors import DataError
from mbcl.io.files import atomic_write, file_digest
from mbcl.io.ownership import NO_LOCKS
from mbcl.io.store import ArrowStore

CACHE_VARIABLE = "MBCL_CACHE"
"""Environment variable with the cache folder of a machine."""


def cache_folder() -> Path:
    """Return the cache folder of this machine: ``$MBCL_CACHE``, or else ``mbcl`` in the user's cache folder."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mbcl"


def local_copy(
    uri: str, name: str, pack_name: str | None, official: Sequence[str], *, found_damaged: bool = False
) -> Path:
    """Return this machine's copy of a data set; copy it first if it is missing.

    Args:
        uri: URI of the folder of a pack, of a folder with a pack in ``mbcl-pack``, or of a folder with official files.
        name: name of the data set.
        pack_name: name of its pack; None if the set is never packed.
        official: names of official files; those that exist are copied.
        found_damaged: whether the reader found the copy of the pack damaged. Its digests are then verified under the
            lock, because another process may have replaced it already. Only a copy that is still damaged is replaced.

    Returns:
        A local folder for the set's reader. A damaged copy of official files is replaced with a warning.

    Raises:
        DataError: if the URI holds neither a pack nor official files or cannot be read; if its pixels do not match the
            manifest, or an official file changes during the copy; if the copy cannot be written.
        ConfigError: if no filesystem opens the URI.
    """
    store = ArrowStore(uri)
    try:
        for prefix in (f"{FOLDER}/", "") if pack_name else ():
            if store.stat(f"{prefix}{pack_name}.json") is not None:
                assert pack_name is not None
                return _copy_pack(store, prefix, pack_name, found_damaged)
        files = {file: stat for file in official if (stat := store.stat(file)) is not None}
        if files:
            return _copy_files(store, name, files)
    except OSError as error:
        raise DataError(f"{name}: {uri} cannot be copied to {cache_folder()}: {one_line(error)}") from error
    expected = [f"a pack ({pack_name}.json, made by `mbcl data pack`)"] if pack_name else []
    expected += [f"official files ({', '.join(official)})"] if official else []
    raise DataError(f"{name}: {uri} holds no data to copy; expected {', or '.join(expected)}")


def _copy_pack(store: ArrowStore, prefix: str, name: str, found_damaged: bool) -> Path:
    manifest = store.read_bytes(f"{prefix}{name}.json")
    folder = cache_folder() / "packs" / f"{name}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    pack = read_pack(manifest, folder / f"{name}.json", name)
    with locked(folder):
        data = pack.path.with_name(pack.data["file"])
        if not _is_whole(
            pack, manifest, digests=found_damaged
        ):  # replaced by a rename, never removed: a process that reads the old copy must not lose it
            _copy(store, f"{prefix}{data.name}", data, sha256=pack.data["sha256"])
            with atomic_write(pack.path) as stream:
                stream.write(manifest)
    return folder


def _is_whole(pack: Pack, manifest: bytes, *, digests: bool) -> bool:
    """Whether both files exist and the pixels have the right size, or with ``digests`` both have the pack's content.

    Usually the reader verifies digests, outside the lock. A new copy may repair an unreadable one.
    """
    data = pack.path.with_name(pack.data["file"])
    if not digests:
        return pack.path.is_file() and data.is_file() and data.stat().st_size == pack.data["bytes"]
    try:
        return pack.path.read_bytes() == manifest and file_digest(data) == pack.data["sha256"]
    except OSError:
        return False


def _copy_files(store: ArrowStore, name: str, files: dict[str, tuple[int, int]]) -> Path:
    key = hashlib.sha256(repr((store.uri, sorted(files.items()))).encode()).hexdigest()[:16]
    folder = cache_folder() / "files" / f"{name}-{key}"
    if all(_is_intact(folder / file) for file in files):  # fast path without the lock
        return folder
    with locked(folder):
        for file, (size, _) in files.items():
            path = folder / file
            if _is_intact(path):  # double-checked: another process may have copied it before this one got the lock
                continue
            if path.is_file() and _checksum_path(path).is_file():
                problem = f"{path}: its content is not what was copied"
                warnings.warn(f"{problem}; this machine's copy is made again", UserWarning, stacklevel=2)
            sha256 = _copy(store, file, path, size=size)
            with atomic_write(_checksum_path(path)) as stream:
                stream.write(sha256.encode())
    return folder


def _is_intact(path: Path) -> bool:
    """Whether the copy of an official file exists and still has its checksum from the time of the copy."""
    try:
        return _checksum_path(path).read_bytes() == file_digest(path).encode()
    except OSError:
        return False


def _checksum_path(path: Path) -> Path:
    """Return the path of the file with an official file's SHA-256 from the time of the copy."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the exclusive file lock of a folder's copy; remove the temporary files of killed processes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
            exclusive = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            exclusive = False  # without locks every process copies, which is slower but safe
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp") if exclusive else ():
            leftover.unlink(missing_ok=True)
        yield


def _copy(store: ArrowStore, source: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> str:
    """Copy a file and return its SHA-256; if digest or size are not as given, raise DataError and keep ``path``."""
    digest = hashlib.sha256()
    with atomic_write(path) as stream:
        for piece in store.pieces(source):
            digest.update(piece)
            stream.write(piece)
        if sha256 not in (None, digest.hexdigest()):
            raise DataError(
                f"{store.uri}/{source}: damaged, or another pack's: expected SHA-256 {sha256}, found "
                f"{digest.hexdigest()}; nothing of it is kept"
            )
        if size not in (None, stream.tell()):
            raise DataError(f"{store.uri}/{source}: it changed while it was copied; nothing of it is kept")
    return digest.hexdigest()
