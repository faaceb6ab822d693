"""Mutual exclusion of sweeps on a results folder: a file lock where files can be locked, elsewhere a lease.

Both end with the process that holds them. The system releases a lock. A lease has a heartbeat: another sweep watches it
for longer than two beats and takes the lease over if the heartbeat has stopped. On the holder's own machine a check of
the process is enough.

The stores offer no compare-and-swap, so two sweeps that take over an expired lease in the same second may both write.
Each reads the lease after a pause, and only the last writer continues. In any case the fencing token of
:mod:`mbcl.io.ownership` lets only its current owner write into the folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError, MbclError
from mbcl.io.ownership import NO_LOCKS, Fence, claim, release
from mbcl.io.store import LocalStore, Store, read_text, write_text

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
LEASE_FILE = ".lease"
BEAT_FILE = ".beat"
BEAT_SECONDS = 15.0
"""Interval of the heartbeat."""
WATCH_SECONDS = 40.0
"""How long a heartbeat must stand still before its lease is taken over: more than two beats."""
SETTLE_SECONDS = 2.0
"""Pause before a new lease is read back: longer than a concurrent write of another sweep takes."""
POLL_SECONDS = 1.0


@contextmanager
def hold(store: Store, log: Callable[[str], None] = lambda text: None) -> Iterator[Fence]:
    """Hold a results folder exclusively, and fence off processes that earlier sweeps have left running.

    ``log`` is called with a line when the sweep waits for a lease to expire.

    Yields:
        The fence with this sweep's token. Every process of the sweep writes under it.

    Raises:
        ConfigError: if another sweep holds the folder, or it cannot be written.
    """
    with _lock(store, log) if isinstance(store, LocalStore) else _lease(store, log) as locked:
        try:
            fence = claim(store)
        except OSError as error:
            raise _unwritable(store, error) from error
        try:
            yield fence
        finally:
            # Only under the lock: without one, this release could overwrite the token of a new owner.
            if locked:
                try:
                    release(store)
                except (OSError, MbclError) as error:  # the next sweep can claim the folder anyway
                    logger.warning("not given back: %s", error)


def _unwritable(store: Store, error: OSError) -> ConfigError:
    return ConfigError(f"--results-dir: {store.uri} cannot be written: {error.strerror or error}")


@contextmanager
def _lock(store: LocalStore, log: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock, or the lease if the file system has no locks; yield whether it is the lock."""
    path = store.folder / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    except OSError as error:
        raise _unwritable(store, error) from error
    with stream, ExitStack() as stack:
        locked = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ConfigError(f"{store.uri}: another sweep is at work there (process {holder})") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = stack.enter_context(_lease(store, log))
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield locked


@contextmanager
def _lease(store: Store, log: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lease; yield False, because it is no lock."""
    _wait_until_free(store, log)
    own_lease = _new_lease()
    try:
        write_text(store, LEASE_FILE, json.dumps(own_lease))
        time.sleep(SETTLE_SECONDS)
        lease = _read(store)
    except OSError as error:
        raise _unwritable(store, error) from error
    if lease != own_lease:
        raise _held_by(store, lease or {})
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, own_lease, stop), daemon=True)
    heart.start()
    try:
        yield False
    finally:
        stop.set()
        heart.join()
        with suppress(OSError):
            if _read(store) == own_lease:
                store.delete(LEASE_FILE)
                store.delete(BEAT_FILE)


def _beat(store: Store, own_lease: dict[str, Any], stop: threading.Event) -> None:
    """Write the heartbeat until the sweep ends or another one has the lease.

    The heartbeat has its own file, so that a delayed write cannot overwrite the lease of a new holder.
    """
    beat = 0
    while not stop.wait(BEAT_SECONDS):
        beat += 1
        try:
            if _read(store) != own_lease:
                logger.warning("%s: the lease is another sweep's now", store.uri)
                return
            write_text(store, BEAT_FILE, f"{own_lease['token']} {beat}")
        except OSError as error:  # transient errors are harmless: the next beat may succeed
            logger.warning("%s: no heartbeat: %s", store.uri, error)


def _wait_until_free(store: Store, log: Callable[[str], None]) -> None:
    """Return when there is no lease, or its holder is known to have ended, or its heartbeat has stopped.

    Raises:
        ConfigError: if another sweep holds the lease.
    """
    lease = _read(store)
    if lease is None or _has_ended_here(lease):
        return
    if lease.get("machine") == _machine():
        raise _held_by(store, lease)
    beat = _last_beat(store)
    log(f"{store.uri} was left by {_describe(lease)}; watching for {WATCH_SECONDS:g} s whether that still lives")
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        current = _read(store)
        if current is None:
            return
        if current != lease or _last_beat(store) != beat:
            raise _held_by(store, current)


def _last_beat(store: Store) -> str:
    try:
        return read_text(store, BEAT_FILE)
    except FileNotFoundError:
        return ""


def _held_by(store: Store, lease: dict[str, Any]) -> ConfigError:
    return ConfigError(f"{store.uri}: another sweep is at work there ({_describe(lease)})")


def _describe(lease: dict[str, Any]) -> str:
    return f"process {lease.get('process', 'unknown')} on {str(lease.get('machine', 'unknown')).partition(' ')[0]}"


def _new_lease() -> dict[str, Any]:
    """Return a lease of this process. Machine, process number and start time let others check whether it lives."""
    process = os.getpid()
    return {"token": uuid.uuid4().hex, "machine": _machine(), "process": process, "started": _start_time(process)}


def _machine() -> str:
    """Return host name, boot id and PID namespace, within which a process number is unique.

    Containers on one host have their own PID namespaces.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(parts)


def _start_time(process: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if unknown."""
    return (_stat(process) or [""] * 20)[19]


def _stat(process: int) -> list[str]:
    """Return the fields of a process's ``/proc`` stat from its state on; empty if unknown."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _has_ended_here(lease: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if lease.get("machine") != _machine():
        return False
    try:
        process = int(lease["process"])
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, ValueError, PermissionError):
        return False
    # A zombie has ended, too: it stays in the process table until its parent waits for it, which some never do. Another
    # start time means that the process number was reused.
    return _stat(process)[:1] == ["Z"] or _start_time(process) != lease.get("started")


def _read(store: Store) -> dict[str, Any] | None:
    """Return the lease; None if there is none or it cannot be parsed."""
    try:
        content = json.loads(read_text(store, LEASE_FILE))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
