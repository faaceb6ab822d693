"""Recovery of a results folder for ``--resume``, after a crash or damage to its files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mbcl.engine import checkpoint as checkpoints
from mbcl.engine import metrics_log
from mbcl.errors import ConfigError
from mbcl.io.store import Store, is_uri, read_text
from mbcl.orchestration.results_folder.extension import with_known_ids
from mbcl.orchestration.results_folder.layout import TRIALS, load, new_study, trial_folder
from mbcl.orchestration.search_space.expansion import Trials
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.study.record import SPACE_FILE, STUDY_FILE, StudyRecord, read_study

DAMAGED_FILE = f"{STUDY_FILE}.damaged"
"""Copy of a record that cannot be read."""


def recover(
    store: Store, file: SpaceFile, trials: Trials, title: str, *, extends: bool = False
) -> tuple[StudyRecord, Trials, list[str]]:
    """Load the study in a folder. A lost record is rebuilt, and its trials resume from what their folders hold.

    ``trials`` are those that are known without the record; ``title`` is the study's name if the record, which has it,
    is lost; ``extends`` as for :func:`.layout.load`.

    Returns:
        The record, all trials that it has, and notes for the user. Nothing is written.

    Raises:
        ConfigError: if there is no study, or the folder belongs to another space; if the record of an adaptive search
            is lost, because only the record has the settings that were drawn. The text says what is left and how to go
            on.
    """
    try:
        read_study(store)
    except ConfigError as error:
        if file.space.search.adaptive:
            raise _without_draws(store, error) from error
        if extends and not store.exists(STUDY_FILE) and not store.list(TRIALS):
            raise ConfigError(f"--extend: {error}; without --extend a new study starts there") from error
        return _rebuild(store, file, trials, title, error)
    return *load(store, file, trials, extends=extends), []


def _without_draws(store: Store, error: ConfigError) -> ConfigError:
    """Return the error for a lost record of an adaptive search: the trials' files do not have its draws."""
    if not store.list(TRIALS):
        return ConfigError(f"--resume: {error}, and no trial has begun; --name OTHER starts a new study")
    return ConfigError(
        f"--resume: {error}; the settings that the search has drawn stood there alone, so the study goes on only from "
        f"a copy of {STUDY_FILE}. What trials measured is kept: {store.uri}/{TRIALS}/ID has "
        f"config.yaml, metrics.jsonl, checkpoints and evaluation.json, which mbcl evaluate --checkpoint takes; "
        f"--name OTHER starts a new study"
    )


def _rebuild(
    store: Store, file: SpaceFile, trials: Trials, title: str, error: ConfigError
) -> tuple[StudyRecord, Trials, list[str]]:
    """Return a new record with the evaluations of ``space.yaml``, its trials, and a note about it.

    Raises:
        ConfigError: if no trial exists, or the trials are not those of the space.
    """
    try:
        stored = yaml.safe_load(read_text(store, SPACE_FILE))
        trial_ids, evaluated = list(stored["trials"]), stored.get("evaluation", {}).get("evaluated", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        trial_ids, evaluated = store.list(TRIALS), []
    if not trial_ids:
        raise ConfigError(f"--resume: {error}; without --resume a new study starts there") from error
    trials = with_known_ids(trials, trial_ids)
    if not set(trial_ids) <= set(trials.by_id):
        raise ConfigError(f"--resume: {error}, and its trials are not those of {file.path}") from error
    study = new_study(file, trials, title)
    for block in evaluated:
        for key in block["trials"]:
            if key in study.trials:
                study.trials[key].evaluation = block["settings"]
    note = f"{error}; the record is made again, and every trial goes on from what its folder holds"
    return study, trials, [note]


def keep_damaged(store: Store) -> None:
    """Copy a record that cannot be read to ``DAMAGED_FILE`` before a new one overwrites it."""
    try:
        read_study(store)
    except ConfigError:
        with suppress(FileNotFoundError):
            store.write_bytes(DAMAGED_FILE, store.read_bytes(STUDY_FILE))


def remove_temporaries(store: Store) -> None:
    """Remove the temporary files of writes that a kill has interrupted. No other process may write there."""
    if is_uri(store.uri):
        return  # object stores write atomically: an object appears when it is complete
    folder = Path(store.uri)
    # Baselines and plots are one folder down. Leftovers in a checkpoint's folder are removed with that folder.
    for pattern in (".*.tmp", "*/.*.tmp", f"{TRIALS}/*/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def notes_of_trials(store: Store, trial_ids: Iterable[str]) -> list[str]:
    """Return a line for each defect in the rows and the newest checkpoints of trials that resume.

    Raises:
        OSError: if storage cannot be reached.
    """
    notes = []
    for key in trial_ids:
        trial = store.child(trial_folder(key))
        checkpoint, damaged_checkpoints = checkpoints.find_latest_valid(trial)
        rows, damaged_rows = metrics_log.read_valid_rows(trial)
        last = max((int(row["epoch"] or 0) for row in rows), default=0)
        done = checkpoint.epoch if checkpoint else 0
        if not damaged_checkpoints and last > done:
            damaged_checkpoints = [f"{trial.uri}: the checkpoint of epoch {last} is gone"]
        # The last row may be missing: the checkpoint has it, too.
        missing = sorted(set(range(1, done)) - {row["epoch"] for row in rows})
        if missing and not damaged_rows:
            damaged_rows = [f"{trial.uri}/{metrics_log.METRICS_FILE}: rows are gone, the first of epoch {missing[0]}"]
        where = f"from {checkpoint.name}" if checkpoint else "from its beginning"
        for lines in filter(None, (damaged_checkpoints, damaged_rows)):
            rest = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            notes.append(f"{key}: {lines[0]}{rest}; the trial goes on {where}")
    return notes


def notes_of(study: StudyRecord, blocks: dict[str, dict[str, Any]]) -> list[str]:
    """Return a note if resumed trials have an evaluation that differs from ``blocks``, the space file's by trial."""
    overridden = [key for key, block in blocks.items() if study.trials[key].evaluation not in ({}, block)]
    note = "trials are evaluated as the last --eval-only asked, like those that it found finished"
    return [note] if overridden else []
