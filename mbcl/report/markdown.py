"""GitHub-flavoured Markdown: text of users as text, tables, code, and figures as SVG files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mbcl.report.pictures import Picture
from mbcl.report.wording import printable

_SPECIAL = re.compile(r"[\\`*<>|\[\]~$&]|(?<![^\W_])_|_(?![^\W_])|^[-+#=]|(?:(?<=^\d)|(?<=^\d\d))[.)](?= )")
_FONT = "'DejaVu Sans', Verdana, 'Segoe UI', sans-serif"


def escaped(text: str) -> str:
    r"""Return text on one line that Markdown shows as it is.

    Example:
        >>> print(escaped("code_docs | *all* <b>"))
        code_docs \| \*all\* \<b\>
    """
    return _SPECIAL.sub(lambda match: "\\" + match[0], " ".join(printable(text).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """Return a table of cells that are Markdown already; columns ``numeric`` are aligned to the right."""
    right = set(numeric)
    lines = [head, ["---:" if column in right else "---" for column in range(len(head))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code_cell(text: str) -> str:
    """Return a code span for a table, where a bar would end the cell in code, too."""
    return code(text).replace("|", "\\|")


def code(text: str) -> str:
    """Return a code span; an empty text stays empty."""
    text = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def fenced(text: str) -> str:
    """Return a block of code, of whatever text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text)}\n{fence}\n"


def svg_of(picture: Picture) -> bytes:
    """Return a figure as a file for pages of any colour: in the light colours on white, in fonts that readers have."""
    white = '\n <rect width="100%" height="100%" fill="#ffffff"/>'
    text = re.sub(r"<svg [^>]*>", lambda tag: tag[0] + white, picture.svg_file, count=1)
    return text.replace("'DejaVu Sans'", _FONT).encode()
