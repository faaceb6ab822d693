"""What a local Ray needs besides its processes: a folder for its sockets and logs, and a token. Both are the run's own.

Neither is in the user's home, which may not exist, and no other run shares the folder, of whatever user.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mbcl.errors import ConfigError, MbclError

PREFIX = "mbcl-"
MAX_FOLDER = 42
"""Longest path of Ray's folder: with a session's name and that of a socket it has at most 107 bytes."""
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # the folder in it is made by mkdtemp
_token = secrets.token_hex(32)
"""One a process: Ray's core reads the token once."""


class RayStartError(MbclError):
    """A local Ray did not start."""


def set_token() -> None:
    """Authenticate with a token that only this user can read, unless the environment names one.

    Otherwise any user of this machine could run code as this user. Ray reads the variables once, at its import. Without
    a token in the environment, it would write one into the user's home.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", _token)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can read; it is removed at the end, unless Ray did not start.

    It is in Ray's or the system's temporary folder, or in another one if that is too long for sockets.

    Raises:
        ConfigError: if no folder will do.
    """
    candidates = [os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), *OTHERS]
    reasons = []
    for candidate in dict.fromkeys(candidates):
        longest = MAX_FOLDER - len(f"/{PREFIX}") - 8
        if len(os.fsencode(candidate)) > longest:
            reasons.append(f"{candidate} has more than {longest} characters")
            continue
        try:
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=candidate)
        except OSError as error:
            reasons.append(f"{candidate}: {error.strerror or error}")
            continue
        keep = False
        try:
            yield Path(folder)
        except RayStartError:
            keep = True  # its logs say why
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
        return
    raise ConfigError(f"TMPDIR: there is no folder for Ray's sockets: {'; '.join(reasons)}; set TMPDIR to another one")
