"""Checkpoints: a folder an epoch, complete when its manifest is there and every file matches it."""

from __future__ import annotations

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
from mbcl.storage import Store, read_text, write_text

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_STATE = "state.pt"
_META = "meta.json"
_NAME = re.compile(r"epoch_(\d{6})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        name: its folder's name.
        epoch: how many epochs were completed.
        sha256: of the stored state.
        state: tensors by part (``model``, ``optimizer``, ``objective``), on the CPU.
        meta: plain values: the experiment, the last row, versions.
    """

    name: str
    epoch: int
    sha256: str
    state: dict[str, Any]
    meta: dict[str, Any]


def name_of(epoch: int) -> str:
    """The folder name of the checkpoint after ``epoch`` completed epochs."""
    return f"epoch_{epoch:06d}"


def save(store: Store, *, epoch: int, state: dict[str, Any], meta: dict[str, Any], keep: int) -> str:
    """Write the checkpoint after ``epoch`` completed epochs and remove all but the ``keep`` newest.

    The manifest goes last: whatever is interrupted before it leaves a folder that is not a checkpoint.

    Returns:
        The checkpoint's name.
    """
    name = name_of(epoch)
    folder = store.child(f"{FOLDER}/{name}")
    store.delete(f"{FOLDER}/{name}")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {_STATE: buffer.getvalue(), _META: json.dumps(meta, sort_keys=True, allow_nan=False).encode()}
    manifest = {key: {"size": len(content), "sha256": _sha256(content)} for key, content in files.items()}
    for key, content in files.items():
        folder.write_bytes(key, content)
    write_text(folder, _MANIFEST, json.dumps({"format": 1, "epoch": epoch, "files": manifest}, indent=1))
    for old in names(store)[:-keep]:
        store.delete(f"{FOLDER}/{old}")
    return name


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
        manifest = json.loads(read_text(folder, _MANIFEST))
        contents = {}
        for key, expected in manifest["files"].items():
            contents[key] = folder.read_bytes(key)
            if len(contents[key]) != expected["size"] or _sha256(contents[key]) != expected["sha256"]:
                raise CheckpointError(f"{folder.uri}/{key}: does not match its manifest")
        state = torch.load(io.BytesIO(contents[_STATE]), map_location="cpu", weights_only=True)
        digest = manifest["files"][_STATE]["sha256"]
        return Checkpoint(name, int(manifest["epoch"]), digest, state, json.loads(contents[_META]))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.uri}: incomplete, {error.filename or 'a file'} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder.uri}: damaged: {str(error).splitlines()[0]}") from error


def latest(store: Store) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None if there is none."""
    for name in reversed(names(store)):
        try:
            return load(store, name)
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
