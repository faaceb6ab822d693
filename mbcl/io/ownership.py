"""Who may write into a folder: the last one that claimed it, and nobody that was there before.

Processes outlive the run that they belong to: a sweep that is killed leaves its workers for some seconds, a node that
the network has lost works on. Whoever takes a folder over writes a new token into its ``.owner``, and a
:class:`FencedStore` compares tokens before everything that it writes or removes. On a local or shared disk a write and
the change of a token exclude each other (``flock``), so that nothing of the former owner arrives afterwards. An object
store has no such locks: there a single object, whose upload was begun with the old token, may still arrive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mbcl.errors import MbclError, OwnershipError
from mbcl.io.store import LocalStore, Store, is_uri, open_store, read_text, write_text

OWNER_FILE = ".owner"
CLAIM_SECONDS = 60.0
"""How long a write of the former owner may hold a claim up."""
POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without locks answer; there it is as on an object store."""


@dataclass(frozen=True)
class Fence:
    """A claim on a folder.

    Args:
        location: the folder, a path or URI.
        token: what its ``.owner`` holds as long as the claim stands.
    """

    location: str
    token: str

    def check(self) -> None:
        """Compare tokens.

        Raises:
            OwnershipError: if another one has claimed the folder since, or it is not there.
        """
        with self.held():
            pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a write: the claim stands from the beginning of the block to its end.

        Raises:
            OwnershipError: if another one has claimed the folder since, or it is not there.
        """
        if is_uri(self.location):
            self._compare(_read(open_store(self.location)))
            yield
            return
        try:
            stream = (Path(self.location) / OWNER_FILE).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            self._compare(None)
        with stream:
            _flock(stream, fcntl.LOCK_SH)
            self._compare(stream.read().decode(errors="replace"))
            yield

    def _compare(self, found: str | None) -> None:
        if found is None:
            raise OwnershipError(
                f"{self.location}: has no {OWNER_FILE}: it was removed, or this machine does not see the results folder"
            )
        if found != self.token:
            raise OwnershipError(f"{self.location}: another run works there since, this one may not write any more")


def claim(store: Store, *, under: Sequence[Fence] = ()) -> Fence:
    """Take a folder over.

    Args:
        store: the folder, made if it is not there.
        under: claims that must stand for this one to be allowed.

    Returns:
        The new claim; all older ones on this folder have fallen.

    Raises:
        OwnershipError: if one of ``under`` has fallen.
        MbclError: if a process of the former owner does not end its write.
    """
    fence = Fence(store.uri, uuid.uuid4().hex)
    with ExitStack() as stack:
        for above in under:
            stack.enter_context(above.held())
        if isinstance(store, LocalStore):
            _claim_local(store, fence)
        else:
            write_text(store, OWNER_FILE, fence.token)
    return fence


def _claim_local(store: LocalStore, fence: Fence) -> None:
    store.folder.mkdir(parents=True, exist_ok=True)
    # In place: a file of another name would leave the former owner's lock on the old one.
    descriptor = os.open(store.folder / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b") as stream:
        end = time.monotonic() + CLAIM_SECONDS
        while not _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > end:
                raise MbclError(f"{store.uri}: a process of an earlier run has been writing for {CLAIM_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        stream.truncate(0)
        stream.write(fence.token.encode())
        stream.flush()
        os.fsync(stream.fileno())


def release(store: Store) -> None:
    """Nobody may write any more, whoever claimed the folder."""
    nobody = Fence(store.uri, "")
    if isinstance(store, LocalStore):
        _claim_local(store, nobody)
    else:
        write_text(store, OWNER_FILE, nobody.token)


def _flock(stream: IO[bytes], how: int) -> bool:
    """Lock an open file as far as its file system can; False if somebody else's lock is in the way."""
    try:
        fcntl.flock(stream, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _read(store: Store) -> str | None:
    try:
        return read_text(store, OWNER_FILE)
    except FileNotFoundError:
        return None


class FencedStore:
    """A store that writes and removes only while claims stand. Reading is free.

    Args:
        store: where it writes.
        fences: the claims.
    """

    def __init__(self, store: Store, fences: Sequence[Fence]) -> None:
        self._store = store
        self._fences = tuple(fences)

    @property
    def uri(self) -> str:
        """The folder, as a person or another process would open it."""
        return self._store.uri

    @contextmanager
    def _held(self) -> Iterator[None]:
        with ExitStack() as stack:
            for fence in self._fences:
                stack.enter_context(fence.held())
            yield

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        return self._store.read_bytes(name)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; raises OwnershipError if a claim has fallen."""
        with self._held():
            self._store.write_bytes(name, content)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return self._store.exists(name)

    def list(self, name: str = "") -> list[str]:
        """The sorted names in a folder; empty if there is no such folder."""
        return self._store.list(name)

    def delete(self, name: str) -> None:
        """Remove a file or a folder; raises OwnershipError if a claim has fallen."""
        with self._held():
            self._store.delete(name)

    def child(self, name: str) -> FencedStore:
        """The store of a folder below, under the same claims."""
        return FencedStore(self._store.child(name), self._fences)

    def local_folder(self, name: str) -> Path:
        """A local folder for a library that insists on paths: what such a library writes is not compared."""
        with self._held():
            return self._store.local_folder(name)

    def publish(self, name: str) -> None:
        """Copy what the local folder holds into the store; raises OwnershipError if a claim has fallen."""
        with self._held():
            self._store.publish(name)
