"""Checkpoints: a folder each, complete when its manifest is there and every file matches it.

One after every epoch (``epoch_000002``: two epochs are done), and within epochs where that is asked for
(``epoch_000002_step_00000150``: two epochs and 150 steps).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import pickle
import re
from dataclasses import dataclass
from typing import Any

import torch

from mbcl.errors import CheckpointError
from mbcl.io.store import LocalStore, Store, read_text, write_text

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_STATE = "state.pt"
_META = "meta.json"
_NAME = re.compile(r"epoch_\d{6}(_step_\d{8})?")
UNREADABLE = (errno.EIO, errno.ESTALE)
"""What a disk answers where a file cannot be read any more."""
_KEPT_WITHIN = 2
"""Checkpoints within the running epoch that are kept: the newest, and one to fall back to."""
BEST_BY = "val/retrieval/top1"
"""The metric whose highest value makes a checkpoint the best; the first of equal ones."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        name: its folder's name.
        epoch: how many epochs were completed.
        sha256: of the stored state.
        state: tensors and plain values by part (``model``, ``optimizer``, ``objective``, ...), on the CPU.
        meta: plain values: the experiment, the last row, the trackers' run id, versions.
    """

    name: str
    epoch: int
    sha256: str
    state: dict[str, Any]
    meta: dict[str, Any]


def name_of(epoch: int, step: int = 0) -> str:
    """The folder name of the checkpoint after ``epoch`` completed epochs and ``step`` steps of the next one."""
    return f"epoch_{epoch:06d}" + (f"_step_{step:08d}" if step else "")


def save(
    store: Store,
    *,
    epoch: int,
    step: int = 0,
    state: dict[str, Any],
    meta: dict[str, Any],
    keep: int,
    best: int | None = None,
) -> str:
    """Write a checkpoint and remove those that are not needed any more.

    The manifest goes last: whatever is interrupted before it leaves a folder that is not a checkpoint.

    Args:
        store: the trial's folder.
        epoch: how many epochs were completed.
        step: steps done in the next one; 0 at an epoch's end.
        state: what :class:`Checkpoint` calls so.
        meta: likewise.
        keep: how many checkpoints at an epoch's end are kept, the newest.
        best: the epoch whose checkpoint is kept besides.

    Returns:
        The checkpoint's name.
    """
    name = name_of(epoch, step)
    folder = store.child(f"{FOLDER}/{name}")
    _delete(store, name)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    meta = {**meta, "epoch": epoch, "step": step}
    files = {_STATE: buffer.getvalue(), _META: json.dumps(meta, sort_keys=True, allow_nan=False).encode()}
    manifest = {key: {"size": len(content), "sha256": _sha256(content)} for key, content in files.items()}
    for key, content in files.items():
        folder.write_bytes(key, content)
    write_text(folder, _MANIFEST, json.dumps({"format": 1, "files": manifest}, indent=1))
    for old in _superfluous(names(store), name, keep, None if best is None else name_of(best)):
        _delete(store, old)
    return name


def _superfluous(found: list[str], written: str, keep: int, best: str | None) -> list[str]:
    """Of all names, oldest first, those that nobody needs after ``written``.

    Newer ones were damaged: the training went on from before them. Those within an epoch serve that epoch alone.
    """
    past = [name for name in found if name <= written]
    ends = [name for name in past if "_step_" not in name]
    within = [name for name in past if "_step_" in name and (not ends or name > ends[-1])]
    kept = {*ends[-keep:], *within[-_KEPT_WITHIN:], best}
    return [name for name in found if name not in past or name not in kept]


def _delete(store: Store, name: str) -> None:
    """The manifest first: what is interrupted leaves no checkpoint."""
    store.delete(f"{FOLDER}/{name}/{_MANIFEST}")
    store.delete(f"{FOLDER}/{name}")


def folder_and_checkpoint(given: str) -> tuple[str, str | None]:
    """A training's folder, and the checkpoint's name where ``given`` is one checkpoint's folder."""
    folder = given.rstrip("/")
    parent, _, last = folder.rpartition("/")
    if parent.rpartition("/")[2] == FOLDER:
        return parent.rpartition("/")[0] or ".", last
    return folder, None


def names(store: Store) -> list[str]:
    """The names of all checkpoint folders, oldest first, complete or not."""
    return [name for name in store.list(FOLDER) if _NAME.fullmatch(name)]


def load(store: Store, name: str) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: if it is incomplete or does not match its manifest.
    """
    folder = store.child(f"{FOLDER}/{name}")
    try:
        manifest = json.loads(read_text(folder, _MANIFEST))["files"]
        contents = {}
        for key in (_STATE, _META):
            contents[key] = folder.read_bytes(key)
            if len(contents[key]) != manifest[key]["size"] or _sha256(contents[key]) != manifest[key]["sha256"]:
                raise CheckpointError(f"{folder.uri}/{key}: does not match its manifest")
        state = torch.load(io.BytesIO(contents[_STATE]), map_location="cpu", weights_only=True)
        meta = json.loads(contents[_META])
        if name != name_of(meta["epoch"], meta["step"]):
            raise CheckpointError(f"{folder.uri}: holds the checkpoint {name_of(meta['epoch'], meta['step'])}")
        return Checkpoint(name, meta["epoch"], manifest[_STATE]["sha256"], state, meta)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.uri}: incomplete, {error.filename or 'a file'} is missing") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{folder.uri}: damaged: {error.filename} is a folder") from error
    except NotADirectoryError as error:
        raise CheckpointError(f"{folder.uri}: damaged: it is no folder") from error
    except OSError as error:
        if error.errno not in UNREADABLE:  # a network that is down says nothing about the checkpoint
            raise
        raise CheckpointError(f"{folder.uri}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder.uri}: damaged: {str(error).splitlines()[0]}") from error


def find_latest_valid(store: Store) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with those after it, newest first."""
    wrong: list[str] = []
    for name in reversed(names(store)):
        try:
            return load(store, name), wrong
        except CheckpointError as error:
            wrong.append(str(error))
    return None, wrong


def latest(store: Store) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None if there is none."""
    found, wrong = find_latest_valid(store)
    for line in wrong:
        logger.warning("%s; trying the one before", line)
    return found


def best(store: Store) -> Checkpoint | None:
    """The whole checkpoint, at an epoch's end, with the highest validation retrieval; None if none was measured."""
    found: Checkpoint | None = None
    for name in reversed(names(store)):
        if "_step_" in name:
            continue
        try:
            other = load(store, name)
        except CheckpointError as error:
            logger.warning("%s; passed over", error)
            continue
        score = other.meta["row"].get(BEST_BY)
        if score is not None and (found is None or score >= found.meta["row"][BEST_BY]):
            found = other
    return found


def none_in(store: Store, which: str = "") -> CheckpointError:
    """What is said of a folder without a checkpoint, or of no folder."""
    there = not isinstance(store, LocalStore) or store.folder.is_dir()
    return CheckpointError(f"{store.uri}: {f'holds no whole checkpoint{which}' if there else 'no such folder'}")


def choose(store: Store, name: str | None = None, *, best_one: bool = False) -> Checkpoint:
    """The checkpoint of this name; without one the newest whole one, or the best.

    Raises:
        CheckpointError: if there is none.
    """
    if name is not None:
        return load(store, name)
    found = best(store) if best_one else latest(store)
    if found is None:
        raise none_in(store, " whose validation retrieval was measured" if best_one else "")
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
