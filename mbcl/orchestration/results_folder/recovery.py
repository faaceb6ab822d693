"""What ``--resume`` finds in a results folder that a sweep, a machine or a disk has left in disorder."""

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
from mbcl.orchestration.results_folder.layout import SPACE_FILE, TRIALS, load, new_study, trial_folder
from mbcl.orchestration.search_space.expansion import Trials
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.study.record import STUDY_FILE, StudyRecord, read_study

DAMAGED_FILE = f"{STUDY_FILE}.damaged"
"""What was found in the place of a record that cannot be read."""


def recover(store: Store, file: SpaceFile, trials: Trials, title: str) -> tuple[StudyRecord, Trials, list[str]]:
    """The study in a folder. Where its record is lost it is made again: trials find what they did in their folders.

    Args:
        store: the results folder.
        file: the space.
        trials: its trials, as far as the file alone tells.
        title: the study's name, where the record that tells it is lost.

    Returns:
        The record, all trials that it knows, and what a person should know about it. Nothing is written.

    Raises:
        ConfigError: if there is no study, or the folder is another space's; if the record of an adaptive search is
            lost, which alone knows the settings that were drawn; the text says what is left and how to go on.
    """
    try:
        read_study(store)
    except ConfigError as error:
        if file.space.search.adaptive:
            raise _without_draws(store, error) from error
        study, notes = _made_again(store, file, trials, title, error)
        return study, trials, notes
    return *load(store, file, trials), []


def _without_draws(store: Store, error: ConfigError) -> ConfigError:
    """What is said where the record of an adaptive search is lost: a draw cannot be told from what became of it."""
    if not store.list(TRIALS):
        return ConfigError(f"--resume: {error}, and no trial has begun; --name OTHER starts a new study")
    return ConfigError(
        f"--resume: {error}; the settings that the search has drawn stood there alone, so the study goes on only from "
        f"a copy of {STUDY_FILE}. What trials measured is kept: {store.uri}/{TRIALS}/ID has "
        f"config.yaml, metrics.jsonl, checkpoints and evaluation.json, which mbcl evaluate --checkpoint takes; "
        f"--name OTHER starts a new study"
    )


def _made_again(
    store: Store, file: SpaceFile, trials: Trials, title: str, error: ConfigError
) -> tuple[StudyRecord, list[str]]:
    try:
        stored = yaml.safe_load(read_text(store, SPACE_FILE))
        known, later = list(stored["trials"]), stored.get("evaluation", {}).get("evaluated", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        known, later = store.list(TRIALS), []
    if not known:
        raise ConfigError(f"--resume: {error}; without --resume a new study starts there") from error
    if not set(known) <= set(trials.by_id):
        raise ConfigError(f"--resume: {error}, and its trials are not those of {file.path}") from error
    study = new_study(file, trials, title)
    for block in later:
        for key in block["trials"]:
            if key in study.trials:
                study.trials[key].evaluation = block["settings"]
    note = f"{error}; the record is made again, and every trial goes on from what its folder holds"
    return study, [note]


def keep_damaged(store: Store) -> None:
    """Put a record that cannot be read aside, before the new one takes its place."""
    try:
        read_study(store)
    except ConfigError:
        with suppress(FileNotFoundError):
            store.write_bytes(DAMAGED_FILE, store.read_bytes(STUDY_FILE))


def remove_temporaries(store: Store) -> None:
    """Remove what writes have left that a kill has cut. Nobody else writes there any more."""
    if is_uri(store.uri):
        return  # an object appears when it is complete
    folder = Path(store.uri)
    # Baselines and plots lie one folder down. What a kill leaves in a checkpoint's folder goes with that.
    for pattern in (".*.tmp", "*/.*.tmp", f"{TRIALS}/*/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def notes_of_trials(store: Store, trial_ids: Iterable[str]) -> list[str]:
    """What is wrong with the rows and the newest checkpoints of trials that go on: a line for each, if anything is.

    Raises:
        OSError: if storage cannot be reached.
    """
    notes = []
    for key in trial_ids:
        trial = store.child(trial_folder(key))
        found, wrong = checkpoints.find_latest_valid(trial)
        rows, damaged = metrics_log.read_valid_rows(trial)
        last, done = max((int(row["epoch"] or 0) for row in rows), default=0), found.epoch if found else 0
        if not wrong and last > done:
            wrong = [f"{trial.uri}: the checkpoint of epoch {last} is gone"]
        gone = sorted(set(range(1, done)) - {row["epoch"] for row in rows})  # the last one the checkpoint knows, too
        if gone and not damaged:
            damaged = [f"{trial.uri}/{metrics_log.METRICS_FILE}: rows are gone, the first of epoch {gone[0]}"]
        where = f"from {found.name}" if found else "from its beginning"
        for lines in filter(None, (wrong, damaged)):
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            notes.append(f"{key}: {lines[0]}{more}; the trial goes on {where}")
    return notes


def notes_of(study: StudyRecord, asked: dict[str, dict[str, Any]]) -> list[str]:
    """What a person should know of evaluations that differ from those of the space file.

    Args:
        study: the record.
        asked: by trial that goes on, its experiment's own evaluation block.
    """
    later = [key for key, block in asked.items() if study.trials[key].evaluation not in ({}, block)]
    return ["trials are evaluated as the last --eval-only asked, like those that it found finished"] if later else []
