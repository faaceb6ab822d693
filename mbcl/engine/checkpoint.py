"""Checkpoints: one folder each, valid once its manifest exists and every file matches the manifest.

One is written after every epoch (``epoch_000002``: two epochs are completed) and, where requested, within epochs
(``epoch_000002_step_00000150``: two epochs and 150 steps).
"""

from __future__ import annotations

import errno
import io
import json
import logging
import pickle
import re
from dataclasses import dataclass
from hashlib import sha256
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
"""Error numbers of a storage medium whose file can no longer be read: they count as damage."""
_NUM_KEPT_WITHIN_EPOCH = 2
"""Checkpoints retained within the running epoch: the newest, and one as a fallback."""
BEST_BY = "val/retrieval/mrr"
"""The metric that selects the best checkpoint: the highest value, the earliest epoch on ties."""
_BEST_BY_EARLIER = "val/retrieval/top1"
"""That of trainings by mbcl 0.2 and before, whose rows do not have the other one."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        name: its folder's name.
        epoch: the number of completed epochs.
        sha256: of the stored state.
        state: tensors and plain values by part (``model``, ``optimizer``, ``objective``, ...), on the CPU.
        meta: plain values: the experiment, the last row of metrics, the trackers' run id, versions.
    """

    name: str
    epoch: int
    sha256: str
    state: dict[str, Any]
    meta: dict[str, Any]


def name_of(epoch: int, step: int = 0) -> str:
    """Return the folder name of the checkpoint after ``epoch`` completed epochs and ``step`` steps of the next one."""
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
    """Write a checkpoint and delete the superseded ones.

    The manifest is the commit marker and is written last: an interrupted write leaves a folder without a manifest,
    which is not a checkpoint. The ``keep`` newest checkpoints at epoch ends are retained, and that of the epoch
    ``best``. For the rest see :class:`Checkpoint` and :func:`name_of`, whose name for this one is returned.
    """
    name = name_of(epoch, step)
    folder = store.child(f"{FOLDER}/{name}")
    _delete(store, name)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    meta = {**meta, "epoch": epoch, "step": step}
    files = {_STATE: buffer.getvalue(), _META: json.dumps(meta, sort_keys=True, allow_nan=False).encode()}
    manifest = {key: {"size": len(content), "sha256": sha256(content).hexdigest()} for key, content in files.items()}
    for key, content in files.items():
        folder.write_bytes(key, content)
    write_text(folder, _MANIFEST, json.dumps({"format": 1, "files": manifest}, indent=1))
    for old in _superseded(names(store), name, keep, None if best is None else name_of(best)):
        _delete(store, old)
    return name


def _superseded(existing: list[str], written: str, keep: int, best: str | None) -> list[str]:
    """Return those of the existing names, oldest first, that ``written`` makes unnecessary.

    Names newer than ``written`` are damaged checkpoints: the training resumed from before them. Checkpoints within an
    epoch are needed only until that epoch ends.
    """
    past = [name for name in existing if name <= written]
    ends = [name for name in past if "_step_" not in name]
    within = [name for name in past if "_step_" in name and (not ends or name > ends[-1])]
    retained = {*ends[-keep:], *within[-_NUM_KEPT_WITHIN_EPOCH:], best}
    return [name for name in existing if name not in past or name not in retained]


def _delete(store: Store, name: str) -> None:
    """Delete a checkpoint, its manifest first, so that an interrupted deletion leaves no valid checkpoint."""
    store.delete(f"{FOLDER}/{name}/{_MANIFEST}")
    store.delete(f"{FOLDER}/{name}")


def folder_and_checkpoint(path: str) -> tuple[str, str | None]:
    """Split a path into a training's folder and, if it is the folder of one checkpoint, that checkpoint's name."""
    folder = path.rstrip("/")
    parent, _, last = folder.rpartition("/")
    if parent.rpartition("/")[2] == FOLDER:
        return parent.rpartition("/")[0] or ".", last
    return folder, None


def names(store: Store) -> list[str]:
    """List all checkpoint folders by name, oldest first, complete or not."""
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
            contents[key] = content = folder.read_bytes(key)
            if (len(content), sha256(content).hexdigest()) != (manifest[key]["size"], manifest[key]["sha256"]):
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
        if error.errno not in UNREADABLE:  # e.g. the network is down: the checkpoint may be intact
            raise
        raise CheckpointError(f"{folder.uri}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder.uri}: damaged: {str(error).splitlines()[0]}") from error


def find_latest_valid(store: Store) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint, and the errors of the invalid ones after it, newest first."""
    errors: list[str] = []
    for name in reversed(names(store)):
        try:
            return load(store, name), errors
        except CheckpointError as error:
            errors.append(str(error))
    return None, errors


def latest(store: Store) -> Checkpoint | None:
    """Return the newest valid checkpoint, or None; damaged ones are skipped with a warning."""
    checkpoint, errors = find_latest_valid(store)
    for line in errors:
        logger.warning("%s; trying the one before", line)
    return checkpoint


def best(store: Store) -> Checkpoint | None:
    """Return the valid epoch-end checkpoint with the highest validation retrieval; None if none was measured."""
    best_checkpoint, best_score = None, -1.0
    for name in reversed([name for name in names(store) if "_step_" not in name]):
        try:
            checkpoint = load(store, name)
        except CheckpointError as error:
            logger.warning("%s; passed over", error)
            continue
        row = checkpoint.meta["row"]
        score = row.get(BEST_BY, row.get(_BEST_BY_EARLIER))
        if score is not None and score >= best_score:
            best_checkpoint, best_score = checkpoint, score
    return best_checkpoint


def none_in(store: Store, which: str = "") -> CheckpointError:
    """Build the error for a folder without a valid checkpoint, or for a missing folder."""
    exists = not isinstance(store, LocalStore) or store.folder.is_dir()
    return CheckpointError(f"{store.uri}: {f'holds no whole checkpoint{which}' if exists else 'no such folder'}")


def choose(store: Store, name: str | None = None, *, best_one: bool = False) -> Checkpoint:
    """Load the named checkpoint; without a name the newest valid one, or the best.

    Raises:
        CheckpointError: if there is none.
    """
    if name is not None:
        return load(store, name)
    checkpoint = best(store) if best_one else latest(store)
    if checkpoint is None:
        raise none_in(store, " whose validation retrieval was measured" if best_one else "")
    return checkpoint
