"""Plugins: Python files of the user that register samplers, objectives, encoders or data sets.

A plugin is imported as a module under its file's name, so that other processes can import it, too. Its digest is part
of the experiment: results of a changed plugin are those of another experiment.

Example:
    >>> load_plugins(["no_such.py"])
    Traceback (most recent call last):
    ...
    mbcl.errors.ConfigError: plugins: no_such.py: no such file
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[1]
"""The folder of the package ``mbcl``. On the nodes of a cluster it holds the plugins, too."""


@dataclass(frozen=True)
class Plugin:
    """An imported plugin.

    Args:
        path: the imported file.
        sha256: of its content.
    """

    path: Path
    sha256: str


_loaded: dict[str, Plugin] = {}
"""The plugins of this process by the name of their module."""


def loaded() -> list[Plugin]:
    """Return the plugins of this process, in the order in which they were loaded."""
    return list(_loaded.values())


def load_plugins(files: object) -> None:
    """Import plugins that are not imported yet.

    Args:
        files: a list of paths, relative to the working directory, or of records as an experiment holds them, whose
            digests must match.

    Raises:
        ConfigError: if it is no such list, a file is missing or has changed, its name is taken, or its import fails.
    """
    if not isinstance(files, list):
        raise ConfigError(f"plugins: expected a list of Python files, found {files!r}")
    for entry in files:
        try:
            record = _as_record(entry)
            _load(record["file"], record.get("sha256"))
        except ConfigError as error:
            raise ConfigError(f"plugins: {error}") from error


class Carried:
    """A value with the plugins of this process, which the process that unpickles it loads before the value.

    A component is pickled as the name of its module, which other processes do not find by themselves.

    Args:
        value: a picklable value, for example a sampler.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Call :func:`_arrive` before the value, as the state, is unpickled."""
        return _arrive, ([{"file": str(plugin.path), "sha256": plugin.sha256} for plugin in loaded()],), self.value

    def __setstate__(self, value: Any) -> None:
        self.value = value


def _arrive(plugins: list[dict[str, str]]) -> Carried:
    load_plugins(plugins)
    return Carried(None)


def record_of(entry: object) -> dict[str, str]:
    """Return the record of a loaded plugin as plain data, ``file`` and ``sha256``.

    Nothing is imported: an experiment may come from a stored file, whose code must not run unasked.

    Args:
        entry: the plugin's path, or such a record.

    Raises:
        ConfigError: if it was not loaded, or had another content then.
    """
    record = _as_record(entry)
    file = record["file"]
    plugin = _loaded.get(Path(file).stem)
    if plugin is None:
        raise ConfigError(f"{file} is not loaded; add --plugin {file}")
    if record.get("sha256", plugin.sha256) != plugin.sha256:
        raise ConfigError(f"{file} has changed since it was used here; load the file as it was")
    return {"file": file, "sha256": plugin.sha256}


def _as_record(entry: object) -> dict[str, str]:
    """Return an entry of ``plugins``, a path or a record, as a record.

    Raises:
        ConfigError: if it is neither.
    """
    record = {"file": entry} if isinstance(entry, str) else entry
    known = isinstance(record, dict) and {"file"} <= set(record) <= {"file", "sha256"}
    if not isinstance(record, dict) or not known or not all(isinstance(v, str) for v in record.values()):
        raise ConfigError(f"expected a Python file, found {entry!r}")
    return record


def _load(file: str, sha256: str | None = None) -> None:
    """Import one plugin; ``sha256`` is the expected digest, if it is known.

    Raises:
        ConfigError: see :func:`load_plugins`.
    """
    name = Path(file).stem
    path, digest = _find(file, sha256)
    if name in _loaded:
        if _loaded[name].sha256 != digest:
            raise ConfigError(f"{file}: {_loaded[name].path}, which has this name, too, is loaded already")
        return
    if Path(file).suffix != ".py" or not name.isidentifier():
        raise ConfigError(f"{file}: expected a Python file, whose name can be imported, such as my_sampler.py")
    # Last, so that no plugin hides a library. Processes that this one starts inherit the path.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    spec = None if name == "__main__" else importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        found = spec.origin if spec else None
        raise ConfigError(f"{file}: the name {name} is taken by {found or 'a module of Python'}; rename the file")
    _loaded[name] = Plugin(path, digest)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        del _loaded[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        text = "" if isinstance(error, SystemExit) and not error.code else str(error)
        reason = " ".join(text.split()) or "no reason given"
        raise ConfigError(f"{file}{line}: {type(error).__name__}: {reason}") from error


def _find(file: str, sha256: str | None) -> tuple[Path, str]:
    """Return the path and digest of a plugin's file: as given, or, if its digest is known, where a node has it.

    Raises:
        ConfigError: if there is none, or none with the expected digest.
    """
    given = Path(file)
    shipped = [] if sha256 is None else [SHIPPED / given.name]
    candidates = [path.parent.resolve() / path.name for path in (given, *shipped) if path.is_file()]
    if not candidates:
        raise ConfigError(f"{file}: no such file")
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in candidates}
    for path, digest in digests.items():
        if sha256 in (None, digest):
            return path, digest
    raise ConfigError(f"{file}: differs from the file that the experiment began with")
