"""Storage for results: a local folder, or a URI that a pyarrow filesystem opens (``s3://bucket/results``).

Every write is atomic, so that a reader never sees a partial file.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mbcl.errors import ConfigError
from mbcl.io.files import atomic_write, fsync, is_temporary, temporary_name
from mbcl.io.uris import check_no_uri, check_uri

PIECE_BYTES = 8 * 2**20
"""Chunk size for reading large files."""
GCS_SECONDS = 30
"""Retry limit of calls to Google Cloud Storage; its default of 15 minutes cannot be interrupted.

The retries have exponential backoff, and the last one may begin just before the limit. So a call ends within a minute.
"""


class Store(Protocol):
    """Files by relative name in one folder."""

    @property
    def uri(self) -> str:
        """Path or URI of the folder, valid in other processes."""

    def read_bytes(self, name: str) -> bytes:
        """Read a file. Raises FileNotFoundError."""

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically; create missing folders."""

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""

    def list(self, name: str = "") -> list[str]:
        """List the sorted names in a folder, without unfinished temporary files; empty if it does not exist."""

    def delete(self, name: str) -> None:
        """Delete a file or a folder; do nothing if it does not exist."""

    def child(self, name: str) -> Store:
        """Return the store of a subfolder."""

    def local_folder(self, name: str) -> Path:
        """Return a local folder for a library that needs paths; :meth:`publish` copies it into the store."""

    def publish(self, name: str) -> None:
        """Copy the folder of :meth:`local_folder` into the store, unless it already is in it."""


def read_text(store: Store, name: str) -> str:
    """Read a file of a store as UTF-8 text."""
    return store.read_bytes(name).decode("utf-8")


def write_text(store: Store, name: str, text: str) -> None:
    """Write text as UTF-8 into a file of a store, atomically."""
    store.write_bytes(name, text.encode("utf-8"))


def check_writable(store: Store, option: str) -> None:
    """Check that a local folder can be created and written, with a temporary folder that is removed again.

    Other stores are not checked: object stores fail at the first write.

    Raises:
        ConfigError: with the option that names the folder, the folder, and the reason from the operating system.
    """
    if not isinstance(store, LocalStore):
        return
    existing = store.folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".mbcl-"):
            pass
    except OSError as error:
        raise ConfigError(f"{option}: {store.uri} cannot be written: {existing}: {error.strerror or error}") from error


class LocalStore(Store):
    """A store in a local folder. Writes are safe against kills and power cuts."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()

    @property
    def uri(self) -> str:
        return str(self.folder)

    def read_bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write_bytes(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(content)

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def list(self, name: str = "") -> list[str]:
        folder = self.folder / name
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if not is_temporary(path.name))

    def delete(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def child(self, name: str) -> LocalStore:
        return LocalStore(self.folder / name)

    def local_folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, name: str) -> None:
        """Do nothing: the local folder is in the store already."""


class ArrowStore(Store):
    """A store behind a pyarrow filesystem. Writes rely on object stores to show only complete objects."""

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
        return self._folder + self._query

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _open(self, name: str) -> Any:
        # By default, pyarrow decompresses files that end in .gz.
        return self._filesystem.open_input_stream(self._path(name), compression=None)

    def read_bytes(self, name: str) -> bytes:
        with self._open(name) as stream:
            return bytes(stream.read())

    def pieces(self, name: str) -> Iterator[bytes]:
        """Read a file in chunks, so that a large one is never in memory as a whole. Raises FileNotFoundError."""
        with self._open(name) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield bytes(piece)

    def stat(self, name: str) -> tuple[int, int] | None:
        """Return size in bytes and modification time in nanoseconds of a file; None if it does not exist."""
        info = self._filesystem.get_file_info(self._path(name))
        return (info.size, info.mtime_ns or 0) if info.is_file else None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically: by the put of an object store, or by a temporary file and rename elsewhere."""
        path = self._path(name)
        folder, _, base = path.rpartition("/")
        self._filesystem.create_dir(folder, recursive=True)
        if self._filesystem.type_name in ("local", "hdfs"):
            temporary = f"{folder}/{temporary_name(base)}"
            try:
                with self._filesystem.open_output_stream(temporary) as stream:
                    stream.write(content)
                self._sync(temporary)
                self._filesystem.move(temporary, path)
            except BaseException:
                with suppress(OSError):
                    self._filesystem.delete_file(temporary)
                raise
            self._sync(folder)
        else:
            with self._filesystem.open_output_stream(path) as stream:
                stream.write(content)

    def _sync(self, path: str) -> None:
        """Flush a file or a folder to the disk, if the filesystem is local."""
        if self._filesystem.type_name == "local":
            fsync(path)

    def _type(self, name: str) -> Any:
        return self._filesystem.get_file_info(self._path(name)).type.name

    def exists(self, name: str) -> bool:
        return bool(self._type(name) != "NotFound")

    def list(self, name: str = "") -> list[str]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(name), allow_not_found=True)
        names = (info.base_name for info in self._filesystem.get_file_info(selector))
        return sorted(entry for entry in names if not is_temporary(entry))

    def delete(self, name: str) -> None:
        kind = self._type(name)
        if kind == "Directory":
            self._filesystem.delete_dir(self._path(name))
        elif kind == "File":
            self._filesystem.delete_file(self._path(name))

    def child(self, name: str) -> ArrowStore:
        return ArrowStore(f"{self._folder}/{name}{self._query}")

    def local_folder(self, name: str) -> Path:
        """Return a temporary folder that is removed with this store; unpublished content is lost."""
        if name not in self._scratch:
            parent = Path(tempfile.mkdtemp(prefix="mbcl-"))
            weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
            # The subfolder has the given name: W&B takes the parent folder and creates its own name in it.
            self._scratch[name] = parent / name
            self._scratch[name].mkdir(parents=True, exist_ok=True)
        return self._scratch[name]

    def publish(self, name: str) -> None:
        folder = self.local_folder(name)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            self.write_bytes(f"{name}/{relative}".lstrip("/"), path.read_bytes())


def _limited(folder: str, query: str) -> str:
    """Return the query of a URI; for Google Cloud Storage with a retry limit, unless it sets one itself."""
    if not folder.lower().startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in query:
        return query
    return f"{query or '?'}{'&' if query.strip('?') else ''}retry_limit_seconds={GCS_SECONDS}"


def is_uri(location: str | Path) -> bool:
    """Whether a location is a URI rather than a local path."""
    return "://" in str(location)


def local_path(text: str) -> Path:
    """Return a local path, with a leading ``~`` or ``~user`` expanded to the home folder.

    Raises:
        ConfigError: if the user has no home folder, or a URI is meant.
    """
    check_no_uri(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"found {text!r}, whose user has no home folder here") from error


def open_store(location: str | Path) -> Store:
    """Open the store at a local path, with a leading ``~`` expanded, or at a URI.

    Raises:
        ConfigError: if no filesystem opens the URI or it has no bucket; if the path is empty, begins with the home of
            an unknown user, is meant as a URI or is invalid for the operating system; if the path or one of its parents
            is a file.
    """
    text = str(location)
    if is_uri(text):
        return ArrowStore(text)
    if not text:
        raise ConfigError("found an empty path, expected a folder")
    store = LocalStore(local_path(text))
    try:
        existing = [path for path in (store.folder, *store.folder.parents) if path.exists()]
        file = next((path for path in existing if not path.is_dir()), None)
    except (OSError, ValueError) as error:  # a path that is too long or has a null byte
        raise ConfigError(f"{text}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if file is not None:
        raise ConfigError(f"{file}: is a file, expected a folder")
    return store
