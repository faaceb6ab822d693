"""The end of a process of a group, such as torchrun's, after an interrupt.

An interrupt becomes a KeyboardInterrupt only when Python runs again. A rank that waits in a collective for a rank that
has ended already, or for the process group to be taken down, would hang until torchrun kills it, 30 s later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from mbcl.cli.parser import EXIT_INTERRUPTED

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a process; others with a handler, such as SIGCHLD of a DataLoader's worker, do not."""
GRACE_SECONDS = 5.0
"""How long the collective of a rank may take to fail after the signal."""


class GroupInterrupt:
    """Ends this process some seconds after a signal, if it has not ended by itself.

    Args:
        message: what is written to stderr before; empty on all ranks but one.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._lock = threading.Lock()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        threading.Thread(target=self._watch, args=(reading,), daemon=True, name="interrupt").start()

    def _watch(self, reading: int) -> None:
        while os.read(reading, 1)[0] not in ENDING:
            pass
        time.sleep(GRACE_SECONDS)
        self.leave()

    def leave(self) -> NoReturn:
        """Write the message and end the process without taking down the group, which may wait for other ranks."""
        self._lock.acquire()  # held until the end: the message is written once
        try:
            with suppress(OSError, ValueError):  # a closed pipe, as of `| head` after the same interrupt
                sys.stdout.flush()
            sys.stderr.write(self._message)
            sys.stderr.flush()
        finally:
            os._exit(EXIT_INTERRUPTED)
