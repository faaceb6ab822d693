"""``--eval-only``: evaluate finished trials again under new settings. A study takes all new metrics or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from mbcl.config.experiment import identity
from mbcl.config.yaml_reader import dump_yaml
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.metrics_log import CONFIG_FILE, KEYS
from mbcl.errors import ConfigError
from mbcl.evaluation import EVALUATION_FILE
from mbcl.io.store import Store, write_text
from mbcl.orchestration.results_folder.layout import trial_folder, versions
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec
from mbcl.orchestration.search_space.replay import with_drawn_trials
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.orchestration.search_space.trial_kinds import TrialKind
from mbcl.orchestration.trial.job import Job, Metrics
from mbcl.study.record import SPACE_FILE, STUDY_FILE, StudyRecord, read_study, write_study

_NEEDED = "in which the new evaluation would be noted; put a copy of it back first"


def reopen_for_evaluation(
    store: Store, file: SpaceFile, trials: Trials
) -> tuple[StudyRecord, dict[str, TrialSpec], Trials, list[str]]:
    """Load a study's record and its finished trials, if only the evaluation of the space differs from theirs.

    Returns:
        The record; the space's trial by the stored trial's name, which gives the new evaluation block; all trials; and
        notes for the user.

    Raises:
        ConfigError: if the folder holds no study or a damaged one, no trial is finished, no finished one has its
            configuration or a checkpoint, or more of the space differs.
    """
    if not store.exists(STUDY_FILE):
        raise ConfigError(f"--eval-only: {store.uri} holds no {STUDY_FILE}")
    study = read_study(store)
    finished = {
        key: record for key, record in study.trials.items() if record.status == "finished" and record.stage != "tuning"
    }
    if not finished:
        raise ConfigError(f"--eval-only: {store.uri} has no finished trial")
    trials = with_drawn_trials(file, trials, study)
    _stored_space(store)  # commit() rewrites it: fail now rather than after all evaluations
    by_ordinal = {spec.ordinal: spec for spec in trials.specs}
    chosen, notes, known = {}, [], False
    for key, record in finished.items():
        spec = by_ordinal.get(record.ordinal)
        stored, note = _stored_experiment(store.child(trial_folder(key)))
        notes += [f"{key}: {note}"] if note else []
        known = known or stored is not None
        expected = {} if spec is None or stored is None else identity(spec.experiment.resolved())
        earlier = identity(stored or {})
        different = [name for name in expected if name != "evaluation" and expected[name] != earlier.get(name)]
        if spec is None or different:
            what = different[0] if different else "number of trials"
            raise ConfigError(
                f"--eval-only: trial {key} of {store.uri} was made from another space (different: {what}); "
                f"only experiment.evaluation may change"
            )
        chosen[key] = spec
    if not known:
        raise ConfigError(
            f"--eval-only: the finished trials of {store.uri} have neither a readable {CONFIG_FILE} nor a whole "
            f"checkpoint, so there is nothing to evaluate; the first: {notes[0]}"
        )
    return study, chosen, trials, notes


def _stored_space(store: Store) -> dict[str, Any]:
    """Return the content of a study's ``space.yaml``.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    try:
        return _mapping(store.read_bytes(SPACE_FILE))
    except FileNotFoundError as error:
        raise ConfigError(f"--eval-only: {store.uri} holds no {SPACE_FILE}, {_NEEDED}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--eval-only: {store.uri}/{SPACE_FILE}: damaged: {_first_line(error)}; {_NEEDED}") from error


def _stored_experiment(trial: Store) -> tuple[dict[str, Any] | None, str]:
    """Return the experiment that a trial was made from, and a note, which is empty if ``config.yaml`` is intact.

    If ``config.yaml`` is damaged, the experiment comes from the newest valid checkpoint. It is None if there is none:
    then the trial cannot be evaluated, and its evaluation says so.
    """
    try:
        return _mapping(trial.read_bytes(CONFIG_FILE)), ""
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {_first_line(error)}"
    latest, _ = checkpoints.find_latest_valid(trial)
    source = f"its checkpoint {latest.name} tells what it was" if latest else "no whole checkpoint tells what it was"
    return latest.meta["experiment"] if latest else None, f"{trial.uri}/{CONFIG_FILE} {reason}; {source}"


def _mapping(content: bytes) -> dict[str, Any]:
    value = yaml.safe_load(content)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, found {short(value)}")
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def evaluation_blocks(study: StudyRecord, trials: Trials, kind: TrialKind) -> dict[str, dict[str, Any]]:
    """Return the space's evaluation block as plain data, by stored trial, finished or not."""
    by_ordinal = {spec.ordinal: kind.evaluation(spec.experiment) for spec in trials.specs}
    return {key: by_ordinal[record.ordinal] for key, record in study.trials.items() if record.ordinal in by_ordinal}


def commit(
    store: Store,
    study: StudyRecord,
    jobs: Mapping[str, Job],
    settings: Mapping[str, dict[str, Any]],
    measured: Mapping[str, Metrics],
    written: Callable[[Job], Store],
) -> None:
    """Commit the new evaluations of all finished trials: write their files, ``space.yaml``, then ``study.json``.

    All inputs are read before the first write. ``study.json``, from which tables and report are made, is the commit
    point: with it all metrics are new. After a kill before it all metrics are the earlier ones, although some files are
    new already; the same command run again then completes the evaluation.

    Args:
        store: the results folder.
        study: the record, changed in place.
        jobs: by trial, as are all that follow.
        settings: the evaluation blocks. Unfinished trials are evaluated by theirs when they finish.
        measured: the new metrics.
        written: returns the store that has a trial's new ``evaluation.json``.

    Raises:
        ConfigError: if ``space.yaml`` is missing or damaged; nothing is changed.
    """
    content = _stored_space(store)
    files = {key: written(jobs[key]).read_bytes(EVALUATION_FILE) for key in measured}
    content["evaluation"] = _evaluated(settings)
    for key, file in files.items():
        store.write_bytes(f"{trial_folder(key)}/{EVALUATION_FILE}", file)
    write_text(store, SPACE_FILE, dump_yaml(content))
    for key, metrics in measured.items():
        record = study.trials[key]
        # Metrics of the training stay; those of the earlier evaluation go, even if the new one lacks them.
        of_training = {name: value for name, value in record.metrics.items() if name in KEYS}
        record.metrics = {**of_training, **metrics}
    for key, evaluation in settings.items():
        study.trials[key].evaluation = evaluation
    write_study(store, study)


def _evaluated(settings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of ``space.yaml`` for an evaluation: time, versions, and the trials of each distinct block."""
    blocks: list[dict[str, Any]] = []
    for key in settings:
        block = next((block for block in blocks if block["settings"] == settings[key]), None)
        if block is None:
            blocks.append(block := {"settings": settings[key], "trials": []})
        block["trials"].append(key)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"when": when, "versions": versions(), "evaluated": blocks}
