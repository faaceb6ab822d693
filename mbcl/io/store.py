"""A folder of results: a local path, or a URI that pyarrow's filesystem opens (``s3://bucket/results``).

Every write is whole or not at all, so that a reader never meets half a file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mbcl.errors import ConfigError
from mbcl.io.uris import check_uri

PIECE_BYTES = 8 * 2**20
"""How much of a large file is read at a time."""
GCS_SECONDS = 30
"""How long a call of Google's storage is tried again; its own limit of 15 minutes heeds no interrupt.

Its waits double, and the last may begin just before the limit: a call ends after a minute at the latest.
"""


class Store(Protocol):
    """Files by relative name below one folder."""

    @property
    def uri(self) -> str:
        """The folder, as a person or another process would open it."""

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; folders are made."""

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""

    def list(self, name: str = "") -> list[str]:
        """The sorted names in a folder; empty if there is no such folder."""

    def delete(self, name: str) -> None:
        """Remove a file or a folder; nothing happens if it is not there."""

    def child(self, name: str) -> Store:
        """The store of a folder below."""

    def local_folder(self, name: str) -> Path:
        """A local folder for a library that insists on paths; :meth:`publish` makes it part of the store."""

    def publish(self, name: str) -> None:
        """Copy what :meth:`local_folder` holds into the store, where that is elsewhere."""


def _fsync(path: Path | str) -> None:
    """Bring a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(store: Store, name: str) -> str:
    """A file of a store as text."""
    return store.read_bytes(name).decode("utf-8")


def write_text(store: Store, name: str, text: str) -> None:
    """Write text into a file of a store, whole or not at all."""
    store.write_bytes(name, text.encode("utf-8"))


def check_writable(store: Store, option: str) -> None:
    """Refuse a local folder that cannot be made or written; nothing is left behind.

    Args:
        store: where results would go. Only a write shows whether an object store takes them.
        option: what the user gave it with.

    Raises:
        ConfigError: with the folder and the system's reason.
    """
    if not isinstance(store, LocalStore):
        return
    place = store.folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".mbcl-"):
            pass
    except OSError as error:
        raise ConfigError(f"{option}: {store.uri} cannot be written: {place}: {error.strerror or error}") from error


class LocalStore:
    """A store on this machine's disk."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self.folder)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Temporary file, fsync, rename, fsync of the folder: survives a kill and a power cut."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync(path.parent)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return (self.folder / name).exists()

    def list(self, name: str = "") -> list[str]:
        """The sorted names in a folder, without unfinished temporary files."""
        folder = self.folder / name
        if not folder.is_dir():
            return []
        return sorted(p.name for p in folder.iterdir() if not (p.name.startswith(".") and p.name.endswith(".tmp")))

    def delete(self, name: str) -> None:
        """Remove a file or a folder; nothing happens if it is not there."""
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def child(self, name: str) -> LocalStore:
        """The store of a folder below."""
        return LocalStore(self.folder / name)

    def local_folder(self, name: str) -> Path:
        """The folder itself, made if it is not there."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, name: str) -> None:
        """Nothing to do: the folder is the store."""


class ArrowStore:
    """A store behind a pyarrow filesystem. Object stores show a file only when it is complete."""

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        try:
            from pyarrow import ArrowInvalid
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise ConfigError(f"{uri}: a URI needs pyarrow, which the extra `ray` installs") from error
        folder, mark, query = uri.partition("?")
        self._folder, self._query = folder.rstrip("/"), mark + query
        try:
            self._filesystem, self._root = FileSystem.from_uri(self._folder + _limited(self._folder, self._query))
        except (ArrowInvalid, OSError) as error:
            raise ConfigError(f"{uri}: cannot be opened: {str(error).splitlines()[0]}") from error
        if not self._root and self._filesystem.type_name in ("s3", "gcs"):
            raise ConfigError(f"found the URI {uri}, which names no bucket; expected one such as s3://bucket/folder")
        if self._filesystem.type_name == "mock":
            raise ConfigError(f"{uri}: what is written there is kept in memory, where nobody finds it again")
        self._scratch: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        """The URI as given."""
        return self._folder + self._query

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _open(self, name: str) -> Any:
        # By default pyarrow would decompress what ends in .gz.
        return self._filesystem.open_input_stream(self._path(name), compression=None)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        with self._open(name) as stream:
            return bytes(stream.read())

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file piece by piece, so that a large one never lies in memory. Raises FileNotFoundError."""
        with self._open(name) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield bytes(piece)

    def stat(self, name: str) -> tuple[int, int] | None:
        """Size in bytes and time of modification in nanoseconds of a file; None if there is no such file."""
        info = self._filesystem.get_file_info(self._path(name))
        return (info.size, info.mtime_ns or 0) if info.is_file else None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write beside and move: atomic on object stores' puts and on mounted filesystems' renames."""
        path = self._path(name)
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        if self._filesystem.type_name in ("local", "hdfs"):
            temporary = f"{path}.{uuid.uuid4().hex}.tmp"
            try:
                with self._filesystem.open_output_stream(temporary) as stream:
                    stream.write(content)
                self._sync(temporary)
                self._filesystem.move(temporary, path)
            except BaseException:
                with suppress(OSError):
                    self._filesystem.delete_file(temporary)
                raise
            self._sync(path.rpartition("/")[0])
        else:
            with self._filesystem.open_output_stream(path) as stream:
                stream.write(content)

    def _sync(self, path: str) -> None:
        """Bring a file or a folder to the disk, where that is one of this machine's."""
        if self._filesystem.type_name == "local":
            _fsync(path)

    def _type(self, name: str) -> Any:
        return self._filesystem.get_file_info(self._path(name)).type.name

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self._type(name) != "NotFound")

    def list(self, name: str = "") -> list[str]:
        """The sorted names in a folder, without unfinished temporary files."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(name), allow_not_found=True)
        names = (info.base_name for info in self._filesystem.get_file_info(selector))
        return sorted(found for found in names if not found.endswith(".tmp"))

    def delete(self, name: str) -> None:
        """Remove a file or a folder; nothing happens if it is not there."""
        kind = self._type(name)
        if kind == "Directory":
            self._filesystem.delete_dir(self._path(name))
        elif kind == "File":
            self._filesystem.delete_file(self._path(name))

    def child(self, name: str) -> ArrowStore:
        """The store of a folder below."""
        return ArrowStore(f"{self._folder}/{name}{self._query}")

    def local_folder(self, name: str) -> Path:
        """A temporary folder that goes with this store; what it holds is lost unless published."""
        if name not in self._scratch:
            above = Path(tempfile.mkdtemp(prefix="mbcl-"))
            weakref.finalize(self, shutil.rmtree, above, ignore_errors=True)
            # Of that name: W&B is told the folder above, and makes one of its own name in it.
            self._scratch[name] = above / name
            self._scratch[name].mkdir(parents=True, exist_ok=True)
        return self._scratch[name]

    def publish(self, name: str) -> None:
        """Copy every file of the local folder into the store."""
        folder = self.local_folder(name)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            self.write_bytes(f"{name}/{relative}".lstrip("/"), path.read_bytes())


def _limited(folder: str, query: str) -> str:
    """The query of a URI, with a limit to the time that Google's storage is tried for, unless it has its own."""
    if not folder.lower().startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in query:
        return query
    return f"{query or '?'}{'&' if query.strip('?') else ''}retry_limit_seconds={GCS_SECONDS}"


def is_uri(location: str | Path) -> bool:
    """Whether a location is a URI and not a local path."""
    return "://" in str(location)


def local_path(text: str) -> Path:
    """A local path, in which a first ``~`` or ``~user`` is a home folder.

    Raises:
        ConfigError: if that user has none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"found {text!r}, whose user has no home folder here") from error


def open_store(location: str | Path) -> Store:
    """The store at a local path, in which a first ``~`` is a home folder, or a URI.

    Raises:
        ConfigError: if no filesystem opens the URI or it names no bucket, if the path is empty, begins with the home of
            an unknown user or is none that the system takes, or if a file stands where a folder should be.
    """
    text = str(location)
    if is_uri(text):
        return ArrowStore(text)
    if not text:
        raise ConfigError("found an empty path, expected a folder")
    store = LocalStore(local_path(text))
    try:
        above = [path for path in (store.folder, *store.folder.parents) if path.exists()]
        file = next((path for path in above if not path.is_dir()), None)
    except (OSError, ValueError) as error:  # too long, a byte that no path has
        raise ConfigError(f"{text}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if file is not None:
        raise ConfigError(f"{file}: is a file, expected a folder")
    return store
