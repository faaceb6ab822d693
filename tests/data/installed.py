"""Installed packages of made-up functions, for ``code_docs``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbcl.data.code_docs import sources

SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "wy")
WORDS = [first + second + third for first in SYLLABLES[:4] for second in SYLLABLES for third in SYLLABLES]
"""400 words."""


def function(number: int) -> str:
    """The source of a function: its own words, of which its docstring has some."""
    words = [WORDS[place] for place in np.random.default_rng(number).permutation(len(WORDS))[:14]]
    return (
        f"def f{number}({words[0]}, *, {words[1]}=None):\n"
        f'    """{" ".join(words[:7]).title()}."""\n'
        f"    {words[2]} = {words[3]}.{words[4]}({words[5]}, {words[6]}={words[7]})\n"
        f"    return {words[8]}({words[9]}.{words[10]}[{words[11]}], {words[12]}.{words[13]})\n"
    )


def write_package(root: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write an installed package: its files, and the record of them."""
    info = root / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def write_functions(root: Path, num_files: int, each: int = 2) -> None:
    """Write a package of so many files, each with some functions."""
    files = {
        f"alpha/m{file}.py": "".join(function(file * each + place) for place in range(each))
        for file in range(num_files)
    }
    write_package(root, "Alpha_One", "1.0", {**files, "alpha/tests/m.py": function(-1 + 10**6), "alpha/data.txt": ""})


def install(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the packages in a folder the only installed ones, with a cache of their own."""
    discover = sources.Distribution.discover
    monkeypatch.setattr(sources, "distributions", lambda: discover(path=[str(root)]))
    monkeypatch.setenv("MBCL_CACHE", str(cache))
