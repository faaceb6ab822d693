"""``--eval-only``: which finished trials are evaluated again and under what; a study takes all new metrics or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from mbcl.engine.records import KEYS
from mbcl.errors import ConfigError
from mbcl.evaluation import EVALUATION_FILE
from mbcl.orchestration.jobs import Job, Metrics
from mbcl.orchestration.kinds import Kind
from mbcl.orchestration.results import SPACE_FILE, trial_folder, versions
from mbcl.orchestration.search import known
from mbcl.orchestration.space import SpaceFile
from mbcl.orchestration.trials import Trials, TrialSpec
from mbcl.storage import Store, read_text, write_text
from mbcl.study import STUDY_FILE, StudyRecord, read_study, write_study

CONFIG_FILE = "config.yaml"


def reopen_for_evaluation(
    store: Store, file: SpaceFile, trials: Trials
) -> tuple[StudyRecord, dict[str, TrialSpec], Trials]:
    """A study's record and its finished trials, if the space differs from theirs in the evaluation at most.

    Returns:
        The record, by the stored trial's name the space's trial, whose evaluation block counts, and all trials.

    Raises:
        ConfigError: if the folder holds no study, nothing is finished, or the space is another one.
    """
    if not store.exists(STUDY_FILE):
        raise ConfigError(f"--eval-only: {store.uri} holds no {STUDY_FILE}")
    study = read_study(store)
    finished = {key: record for key, record in study.trials.items() if record.status == "finished"}
    if not finished:
        raise ConfigError(f"--eval-only: {store.uri} has no finished trial")
    trials = known(file, trials, study)
    by_ordinal = {spec.ordinal: spec for spec in trials.specs}
    chosen = {}
    for key, record in finished.items():
        spec = by_ordinal.get(record.ordinal)
        stored = yaml.safe_load(store.read_bytes(f"{trial_folder(key)}/{CONFIG_FILE}"))
        wanted = {} if spec is None else spec.experiment.model_dump(mode="json")
        different = [name for name in wanted if name != "evaluation" and wanted[name] != stored.get(name)]
        if spec is None or different:
            what = different[0] if different else "number of trials"
            raise ConfigError(
                f"--eval-only: trial {key} of {store.uri} was made from another space (different: {what}); "
                f"only experiment.evaluation may change"
            )
        chosen[key] = spec
    return study, chosen, trials


def settings_of(study: StudyRecord, trials: Trials, kind: Kind) -> dict[str, dict[str, Any]]:
    """By stored trial, finished or not, the evaluation block that the space asks for, as plain data."""
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
    """Make the evaluations of all finished trials the study's: their files, ``space.yaml``, then ``study.json``.

    Args:
        store: the results folder.
        study: the record, changed in place.
        jobs: the trials.
        settings: by trial, the evaluation block; trials that are not finished will be evaluated so, too, when they are.
        measured: by trial, what it gave.
        written: where a trial's new ``evaluation.json`` waits.
    """
    for key, metrics in measured.items():
        store.write_bytes(f"{trial_folder(key)}/{EVALUATION_FILE}", written(jobs[key]).read_bytes(EVALUATION_FILE))
        record = study.trials[key]
        # What training measured stays.
        kept = {name: value for name, value in record.metrics.items() if name in KEYS}
        record.metrics = {**kept, **metrics}
    for key, asked in settings.items():
        study.trials[key].evaluation = asked
    content = yaml.safe_load(read_text(store, SPACE_FILE))
    blocks: list[dict[str, Any]] = []
    for key in settings:
        block = next((block for block in blocks if block["settings"] == settings[key]), None)
        if block is None:
            blocks.append(block := {"settings": settings[key], "trials": []})
        block["trials"].append(key)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    content["evaluation"] = {"when": when, "versions": versions(), "evaluated": blocks}
    write_text(store, SPACE_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    write_study(store, study)
