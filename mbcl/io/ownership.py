"""Write ownership of a folder by fencing tokens: only the holder of the newest claim may write.

Processes can outlive their run: the workers of a killed sweep run on for some seconds, and a node that lost its network
connection keeps working. A new owner writes a new token into the folder's ``.owner``, and a :class:`FencedStore`
compares tokens before every write and delete. On a local or shared disk, writes hold a shared ``flock`` and a claim an
exclusive one, so that no write of the former owner completes after the claim. An object store has no locks: an upload
of a single object that began under the old token may still complete.
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
"""Timeout of a claim that waits for a write of the former owner."""
POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without locks, which are treated like object stores."""


@dataclass(frozen=True)
class Fence:
    """A claim on a folder, a path or URI; ``token`` is the content of its ``.owner`` while the claim is valid."""

    location: str
    token: str

    def check(self) -> None:
        """Check that the claim is still valid.

        Raises:
            OwnershipError: if a newer claim exists, or the folder or its token is missing.
        """
        with self.held():
            pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Guard a write: check the claim, and on a file system with locks block newer claims until the block ends.

        Raises:
            OwnershipError: if a newer claim exists, or the folder or its token is missing.
        """
        if is_uri(self.location):
            self._compare(_read_token(open_store(self.location)))
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

    def _compare(self, token: str | None) -> None:
        if token is None:
            raise OwnershipError(
                f"{self.location}: has no {OWNER_FILE}: it was removed, or this machine does not see the results folder"
            )
        if token != self.token:
            raise OwnershipError(f"{self.location}: another run works there since, this one may not write any more")


def claim(store: Store, *, under: Sequence[Fence] = ()) -> Fence:
    """Claim a folder, created if missing, with a new fencing token; all older claims on it become invalid.

    The parent claims ``under`` it must be valid.

    Raises:
        OwnershipError: if one of ``under`` is no longer valid.
        MbclError: if a process of the former owner does not finish its write within ``CLAIM_SECONDS``.
    """
    fence = Fence(store.uri, uuid.uuid4().hex)
    with _held(under):
        _write_token(store, fence.token)
    return fence


@contextmanager
def _held(fences: Sequence[Fence]) -> Iterator[None]:
    with ExitStack() as stack:
        for fence in fences:
            stack.enter_context(fence.held())
        yield


def _write_token(store: Store, token: str) -> None:
    if not isinstance(store, LocalStore):
        write_text(store, OWNER_FILE, token)
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    # Written in place: after a rename, the former owner's lock would be on the old inode.
    descriptor = os.open(store.folder / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b") as stream:
        deadline = time.monotonic() + CLAIM_SECONDS
        while not _flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > deadline:
                raise MbclError(f"{store.uri}: a process of an earlier run has been writing for {CLAIM_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        stream.truncate(0)
        stream.write(token.encode())
        stream.flush()
        os.fsync(stream.fileno())


def release(store: Store) -> None:
    """Invalidate all claims on a folder, by an empty token that no claim has."""
    _write_token(store, "")


def _flock(stream: IO[bytes], operation: int) -> bool:
    """Lock an open file if its file system supports locks; return False if another process holds a conflicting lock."""
    try:
        fcntl.flock(stream, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _read_token(store: Store) -> str | None:
    try:
        return read_text(store, OWNER_FILE)
    except FileNotFoundError:
        return None


class FencedStore(Store):
    """A store that writes, deletes and publishes only while its claims are valid, or else raises OwnershipError.

    Reads are not checked. The stores of subfolders have the same claims.
    """

    def __init__(self, store: Store, fences: Sequence[Fence]) -> None:
        self._store = store
        self._fences = tuple(fences)

    @property
    def uri(self) -> str:
        return self._store.uri

    def read_bytes(self, name: str) -> bytes:
        return self._store.read_bytes(name)

    def write_bytes(self, name: str, content: bytes) -> None:
        with _held(self._fences):
            self._store.write_bytes(name, content)

    def exists(self, name: str) -> bool:
        return self._store.exists(name)

    def list(self, name: str = "") -> list[str]:
        return self._store.list(name)

    def delete(self, name: str) -> None:
        with _held(self._fences):
            self._store.delete(name)

    def child(self, name: str) -> FencedStore:
        return FencedStore(self._store.child(name), self._fences)

    def local_folder(self, name: str) -> Path:
        """Return a local folder for a library that needs paths; writes of the library are not checked."""
        with _held(self._fences):
            return self._store.local_folder(name)

    def publish(self, name: str) -> None:
        with _held(self._fences):
            self._store.publish(name)
