"""The code blocks of the documents, and how a test runs them.

A block is Python, YAML, JSON, TOML, ``bash`` (a script), ``text`` (a drawing or an output), or, without a language,
commands, one a line; lines that begin with ``$`` are commands with their output below. A comment on the line before a
block, or before a document's title for all of its blocks, says what is special:

- ``<!-- not run: REASON -->``: it cannot run here. Its commands are still parsed.
- ``<!-- slow: REASON -->``: it runs with the slow tests.
- ``<!-- run by FILE -->``: that test runs it.
- ``<!-- file: NAME -->``: its text is also stored under this name, for the blocks that follow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("", "python", "yaml", "json", "toml", "bash", "dockerfile", "text")


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: str
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""
    whole_document: bool = False
    """Whether the mark is that of all blocks of the document."""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.document}:{self.line}"

    def commands(self) -> list[tuple[str, str]]:
        """The commands of a block without language, each with the output that is shown below it."""
        joined = self.text.replace("\\\n", " ")
        if "$ " not in joined[:2]:
            return [(line, "") for line in joined.splitlines() if line.strip() and not line.startswith("#")]
        parts = re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]
        return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


MADE = {"study_results.md"}
"""By `mbcl report --markdown`; its commands are those of sweeps."""


def documents() -> list[str]:
    """The Markdown files whose blocks are run, by their path from the root; MADE has those that commands make."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [str(file.relative_to(ROOT)) for file in files if file.exists() and file.name not in MADE]


def mark_of(line: str) -> tuple[str, str]:
    """The kind and the reason of a mark; two empty strings for any other line."""
    if match := re.fullmatch(r"<!-- (not run|slow|file): (.+) -->", line.strip()):
        return match[1], match[2]
    if match := re.fullmatch(r"<!-- run by (\S+) -->", line.strip()):
        return "run by", match[1]
    return "", ""


def blocks(document: str) -> list[Block]:
    """The blocks of a document in order."""
    lines = (ROOT / document).read_text().splitlines()
    of_all = mark_of(lines[0])
    found, number = [], 0
    while number < len(lines):
        if not (fence := re.fullmatch(r"```(\w*)", lines[number])):
            number += 1
            continue
        end = lines.index("```", number + 1)
        before = next((line for line in reversed(lines[:number]) if line.strip()), "")
        own = mark_of(before)
        mark, reason = own if own[0] else of_all
        text = "\n".join(lines[number + 1 : end]) + "\n"
        found.append(Block(document, number + 1, fence[1], text, mark, reason, not own[0] and bool(mark)))
        number = end + 1
    return found
