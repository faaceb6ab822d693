"""The failure of a trial: one line with its substance, and the whole text, which its folder keeps in ``error.log``."""

from __future__ import annotations

import re
import traceback

from pydantic import ValidationError

from mbcl.errors import MbclError

TRACEBACK = "Traceback (most recent call last)"
_MEMORY = re.compile(r"was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB")
"""In the message of Ray's memory monitor, which kills processes of a node that runs out of memory."""
_EXIT = re.compile(r"[Ww]orker exit detail: (.*?)\.? *(?:There are some potential|Some common causes|\n|$)")
"""In the message of Ray about a process that was lost."""


def describe_error(error: BaseException) -> str:
    """Describe an error in one line: its message and, unless it is an :class:`MbclError`, its type."""
    if isinstance(error, MbclError):
        return " ".join(str(error).split())
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, (error.title, *first["loc"])))
        return f"{type(error).__name__}: {place}: {first['msg']}, found {first['input']!r}"
    text, described = str(error), describe_text(str(error))
    if _MEMORY.search(text) or _EXIT.search(text) or TRACEBACK in text:
        return described
    return f"{type(error).__name__}: {described}" if described else type(error).__name__


def describe_text(text: str) -> str:
    """Describe the text of an error of any process in one line.

    Of a traceback, as Ray passes it on, the last line is the error. Otherwise the first line is, and the second one, if
    the first announces it.
    """
    if match := _MEMORY.search(text):
        used, limit = match.groups()
        return (
            f"killed for lack of memory: {used} of {limit} GB were in use; fewer trials at a time take less "
            f"(resources.max_concurrent_trials)"
        )
    if match := _EXIT.search(text):
        return f"a process was lost: {match[1]} (`dmesg` says whether the system killed it for lack of memory)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if TRACEBACK in text:
        return lines[-1]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])


def full_text(error: BaseException) -> str:
    """Return the tracebacks of an error and of the errors that it was raised from, those of other processes too."""
    return "".join(traceback.format_exception(error))
