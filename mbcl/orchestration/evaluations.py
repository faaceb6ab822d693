"""``--eval-only``: which finished trials are evaluated again, and under what."""

from __future__ import annotations

import yaml

from mbcl.errors import ConfigError
from mbcl.orchestration.results import trial_folder
from mbcl.orchestration.trials import Trials, TrialSpec
from mbcl.storage import Store
from mbcl.study import STUDY_FILE, StudyRecord, read_study

CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.json"


def reopen_for_evaluation(store: Store, trials: Trials) -> tuple[StudyRecord, dict[str, TrialSpec]]:
    """A study's record and its finished trials, if the space differs from theirs in the evaluation at most.

    Returns:
        The record, and by the stored trial's name the space's trial, whose evaluation block counts.

    Raises:
        ConfigError: if the folder holds no study, nothing is finished, or the space is another one.
    """
    if not store.exists(STUDY_FILE):
        raise ConfigError(f"--eval-only: {store.uri} holds no {STUDY_FILE}")
    study = read_study(store)
    finished = {key: record for key, record in study.trials.items() if record.status == "finished"}
    if not finished:
        raise ConfigError(f"--eval-only: {store.uri} has no finished trial")
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
    return study, chosen
