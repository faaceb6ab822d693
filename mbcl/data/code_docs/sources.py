"""The Python files of the installed packages, in an order that depends on names alone."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

OWN = "mbcl"
"""Left out: its sources change without its version."""
_files_of: dict[tuple[str, str, str], tuple[tuple[str, Path], ...]] = {}
"""The Python files by name, version and place: the records of all packages take a second to read, at every trial."""
_SITES = {"site-packages", "dist-packages"}
_LEFT_OUT = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "_vendored"}
"""Folders of tests, whose docstrings say little, and of copies of other packages."""


@dataclass(frozen=True)
class Package:
    """An installed distribution with its Python files: names as in its record, and paths."""

    name: str
    version: str
    files: tuple[tuple[str, Path], ...]


def installed() -> list[Package]:
    """Return the installed packages that have Python files, by name; the first on the path wins."""
    by_name: dict[str, Package] = {}
    for distribution in distributions():
        if _is_bundled(distribution):
            continue
        metadata = distribution.metadata  # each access parses the whole file, of some packages a long document
        name, version = re.sub(r"[-_.]+", "-", metadata["Name"] or "").lower(), metadata["Version"]
        if not name or name == OWN or name in by_name:
            continue
        key = (name, version, str(distribution.locate_file("")))
        if key not in _files_of:
            _files_of[key] = tuple(sorted(_python_files(distribution)))
        if _files_of[key]:
            by_name[name] = Package(name, version, _files_of[key])
    return [by_name[name] for name in sorted(by_name)]


def _is_bundled(distribution: Distribution) -> bool:
    """Tell whether a distribution is a copy in another package, which ``import ray`` for one puts on the path.

    With such copies the pairs would be others in the processes of Ray than in that which checks the data.
    """
    return not _SITES.isdisjoint(Path(str(distribution.locate_file(""))).parent.parts)


def versions(packages: list[Package]) -> dict[str, str]:
    """Return the versions that determine the pairs: of Python, whose parser reads them, and of the packages."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {package.name: package.version for package in packages}


def _python_files(distribution: Distribution) -> Iterator[tuple[str, Path]]:
    """Yield the files that an installed package records; a project's sources have no record.

    ``python -m mbcl`` finds the ``.egg-info`` of the folder that it runs in, so pairs would depend on the folder.
    """
    if distribution.read_text("RECORD") is None:
        return
    for file in distribution.files or ():
        path = PurePosixPath(str(file))
        if path.suffix != ".py" or ".." in path.parts or path.is_absolute():
            continue
        if not _LEFT_OUT.intersection(path.parts[:-1]) and not path.name.startswith(("test_", "conftest")):
            yield str(path), Path(str(distribution.locate_file(file)))
