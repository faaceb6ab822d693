"""One sweep at a time on a results folder: a lock where files can be locked, a lease with a heartbeat elsewhere.

Both end with the process that holds them. A lock is given back by the system. A lease is a heartbeat that changes; who
wants the folder watches it for longer than two beats, and takes it over if it has stopped. On the holder's own machine
it is enough to look whether the process lives.

Object stores know no compare-and-swap here, so two sweeps that want a stopped lease in the same second may both write:
each then reads what has remained, and only the last writer goes on. Whatever happens, :mod:`mbcl.io.ownership` lets
only the one whose token stands write into the folder.
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
"""How often a sweep on an object store shows that it lives."""
WATCH_SECONDS = 40.0
"""How long a heartbeat that stands still is watched before its lease is taken over: more than two beats."""
SETTLE_SECONDS = 2.0
"""How long a lease must have been one's own: longer than another sweep's write of it takes."""
POLL_SECONDS = 1.0


@contextmanager
def hold(store: Store, log: Callable[[str], None] = lambda text: None) -> Iterator[Fence]:
    """Hold a results folder for one sweep at a time, and fence off whatever earlier ones have left running.

    Args:
        store: the results folder.
        log: is told in a line what is waited for.

    Yields:
        The claim that every process of this sweep writes under.

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
            # Where a former owner cannot be kept from overwriting a new one's token, it does not try.
            if locked:
                _give_back(store)


def _give_back(store: Store) -> None:
    """The next sweep claims the folder anyway: what is in the way of that is no failure of this one."""
    try:
        release(store)
    except (OSError, MbclError) as error:
        logger.warning("not given back: %s", error)


def _unwritable(store: Store, error: OSError) -> ConfigError:
    return ConfigError(f"--results-dir: {store.uri} cannot be written: {error.strerror or error}")


@contextmanager
def _lock(store: LocalStore, log: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock, or the lease where files have no locks; yields whether it is the lock."""
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
    """Hold the lease; yields that it is no lock."""
    _wait_for(store, log)
    mine = _who()
    try:
        write_text(store, LEASE_FILE, json.dumps(mine))
        time.sleep(SETTLE_SECONDS)
        found = _read(store)
    except OSError as error:
        raise _unwritable(store, error) from error
    if found != mine:
        raise _held_by(store, found or {})
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, mine, stop), daemon=True)
    heart.start()
    try:
        yield False
    finally:
        stop.set()
        heart.join()
        with suppress(OSError):
            if _read(store) == mine:
                store.delete(LEASE_FILE)
                store.delete(BEAT_FILE)


def _beat(store: Store, mine: dict[str, Any], stop: threading.Event) -> None:
    """Show again and again that this sweep lives, until it ends or another one has the lease.

    In a file of its own: a beat that was on its way for long cannot overwrite the lease of who has it since.
    """
    beat = 0
    while not stop.wait(BEAT_SECONDS):
        beat += 1
        try:
            if _read(store) != mine:
                logger.warning("%s: the lease is another sweep's now", store.uri)
                return
            write_text(store, BEAT_FILE, f"{mine['token']} {beat}")
        except OSError as error:  # the next beat may come through
            logger.warning("%s: no heartbeat: %s", store.uri, error)


def _wait_for(store: Store, log: Callable[[str], None]) -> None:
    """Return when nobody holds the lease.

    Raises:
        ConfigError: if another sweep does.
    """
    found = _read(store)
    if found is None or _is_gone(found):
        return
    if _is_here(found):
        raise _held_by(store, found)
    beat = _last_beat(store)
    log(f"{store.uri} was left by {_name(found)}; watching for {WATCH_SECONDS:g} s whether that still lives")
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        now = _read(store)
        if now is None:
            return
        if now != found or _last_beat(store) != beat:
            raise _held_by(store, now)


def _last_beat(store: Store) -> str:
    try:
        return read_text(store, BEAT_FILE)
    except FileNotFoundError:
        return ""


def _held_by(store: Store, found: dict[str, Any]) -> ConfigError:
    return ConfigError(f"{store.uri}: another sweep is at work there ({_name(found)})")


def _name(found: dict[str, Any]) -> str:
    return f"process {found.get('process', 'unknown')} on {str(found.get('machine', 'unknown')).partition(' ')[0]}"


def _who() -> dict[str, Any]:
    """This process, as another one can look whether it still lives."""
    process = os.getpid()
    return {"token": uuid.uuid4().hex, "machine": _machine(), "process": process, "started": _started(process)}


def _machine() -> str:
    """This machine and its current boot, and the space that process numbers belong to: containers have their own."""
    words = [socket.gethostname()]
    try:
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        words.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(words)


def _started(process: int) -> str:
    """When a process started, in the system's ticks; empty where that cannot be known."""
    return (_stat(process) or [""] * 20)[19]


def _stat(process: int) -> list[str]:
    """What the system says about a process, from its state on; empty where that cannot be known."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_here(found: dict[str, Any]) -> bool:
    """Whether the holder is a living process of this machine."""
    return found.get("machine") == _machine() and not _is_gone(found)


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if found.get("machine") != _machine():
        return False
    try:
        os.kill(int(found["process"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, ValueError, PermissionError):
        return False
    process = int(found["process"])
    # One that has ended stays in the system's table until its parent asks for it, which some never do.
    return _stat(process)[:1] == ["Z"] or _started(process) != found.get("started")


def _read(store: Store) -> dict[str, Any] | None:
    """The lease, None if there is none; what cannot be read is nobody's."""
    try:
        content = json.loads(read_text(store, LEASE_FILE))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
