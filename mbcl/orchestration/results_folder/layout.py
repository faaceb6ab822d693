"""The layout of a study's results folder: create it, load it, and finalize it. ``study.json`` makes it a study."""

from __future__ import annotations

import json
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import mbcl
from mbcl.config.experiment import identity
from mbcl.config.yaml_reader import dump_yaml
from mbcl.errors import ConfigError, pluralize
from mbcl.io.ownership import OWNER_FILE
from mbcl.io.store import Store, is_uri, write_text
from mbcl.orchestration.results_folder.extension import extend, with_known_ids
from mbcl.orchestration.results_folder.lease import BEAT_FILE, LEASE_FILE, LOCK_FILE
from mbcl.orchestration.search_space.baseline import resolved_baseline
from mbcl.orchestration.search_space.domains import is_drawn, short
from mbcl.orchestration.search_space.expansion import Trials, record_of, space_digest
from mbcl.orchestration.search_space.replay import with_drawn_trials
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.study.record import SPACE_FILE, STUDY_FILE, StudyRecord, read_study, write_study

SCRATCH = ".ray"
TRIALS = "trials"
OWN_FILES = (LOCK_FILE, LEASE_FILE, BEAT_FILE, OWNER_FILE, SPACE_FILE, SCRATCH)
TIDY_TRIES, TIDY_SECONDS = 5, 0.5
PACKAGES = ("torch", "torchvision", "ray", "numpy", "scipy", "scikit-learn")


def trial_folder(trial_id: str) -> str:
    """Return the path of a trial's folder in the results folder."""
    return f"{TRIALS}/{trial_id}"


def versions() -> dict[str, str]:
    """Return the versions of mbcl, Python, the source tree and the installed packages of ``PACKAGES``."""
    result = {"mbcl": mbcl.__version__, "python": platform.python_version(), "git": _git_revision()}
    for package in PACKAGES:
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return result


def _git_revision() -> str:
    """Return the source tree's git revision, with ``-modified`` if files differ; ``unknown`` outside a repository."""
    folder = Path(mbcl.__file__).parent
    try:
        outputs = [
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return outputs[0] + ("-modified" if outputs[1] else "")


def new_study(file: SpaceFile, trials: Trials, title: str) -> StudyRecord:
    """Return the record of a study that has not started."""
    return StudyRecord(
        name=title,
        id=uuid.uuid4().hex[:8],
        question=file.space.question,
        space_digest=space_digest(trials, file.space),
        baseline=resolved_baseline(file.space),
        metric=file.space.search.metric,
        mode=file.space.search.mode,
        equivalence=file.space.equivalence,
        searched=any(is_drawn(domain) for domain in file.space.space.values()),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        nuisance=file.space.nuisance.keys if file.space.nuisance else [],
        trials={spec.trial_id: record_of(spec) for spec in trials.specs},
    )


def check_new(store: Store, name: str) -> None:
    """Refuse a folder that already holds results.

    Raises:
        ConfigError: offering ``--resume`` and ``--name``.
    """
    if store.exists(STUDY_FILE):
        raise ConfigError(
            f"--name {name}: {store.uri} already holds results; --resume runs what is missing there, "
            f"--name OTHER starts anew elsewhere"
        )
    # A sweep that was killed before it wrote study.json may have left some of our files.
    foreign = [entry for entry in store.list() if entry not in OWN_FILES]
    if foreign:
        raise ConfigError(
            f"--name {name}: {store.uri} holds files of something else ({foreign[0]}); choose another --name"
        )


def create(store: Store, file: SpaceFile, trials: Trials, study: StudyRecord) -> None:
    """Write ``space.yaml`` and then ``study.json`` of a new study. The second commits: with it the study exists.

    Of a study that is extended, ``space.yaml`` keeps the evaluations of ``--eval-only``.
    """
    content = {
        "given": file.given,
        "set": list(file.overrides),
        "resolved": file.space.model_dump(mode="json"),
        "seeds": file.space.seeds,
        "versions": study.versions,
        "trials": [spec.trial_id for spec in trials.specs],
    }
    stored = _stored(store)
    content |= {"evaluation": stored["evaluation"]} if "evaluation" in stored else {}
    write_text(store, SPACE_FILE, dump_yaml(content))
    write_study(store, study)


def roll_back(store: Store) -> None:
    """Remove what :func:`create` wrote."""
    for name in (STUDY_FILE, SPACE_FILE, SCRATCH):
        store.delete(name)


def scratch(store: Store) -> str:
    """Return the path or URI of the folder for Ray's files. It is removed when the sweep ends."""
    return store.child(SCRATCH).uri if is_uri(store.uri) else str(store.local_folder(SCRATCH))


def finalize(store: Store, study: StudyRecord) -> None:
    """End a sweep: remove Ray's files and set trials that are recorded as running back to pending."""
    remove_scratch(store)  # first: on a full disk this makes room for the record
    for record in study.trials.values():
        if record.status == "running":
            record.status = "pending"
    write_study(store, study)


def remove_scratch(store: Store) -> None:
    """Remove Ray's files of all sweeps. It is retried, because a worker that is about to end may still write some."""
    for _ in range(TIDY_TRIES):
        try:
            store.delete(SCRATCH)
            return
        except OSError:
            time.sleep(TIDY_SECONDS)


def load(store: Store, file: SpaceFile, trials: Trials, *, extends: bool = False) -> tuple[StudyRecord, Trials]:
    """Load the study in a folder and its trials, if the space still defines the same ones.

    With ``extends`` it may define further ones, which the returned record has.

    Raises:
        ConfigError: if there is no study, it cannot be read, or it was made from another space; the text then names the
            first key that differs.
    """
    study = read_study(store)
    digest = space_digest(trials, file.space)
    if study.space_digest != digest and not extends:
        raise ConfigError(
            f"--resume: {store.uri} was made from another space: {_difference(store, file)}; "
            f"--name OTHER starts a new study, --extend adds further seeds, settings and draws to this one"
        )
    trials = with_known_ids(with_drawn_trials(file, trials, study), study.trials)
    if extends:
        notes = extend(study, file, trials, digest, _changed_base(store, file))
        trials = replace(trials, notes=(*trials.notes, *notes))
    mismatches = sorted(set(study.trials) ^ set(trials.by_id))
    if mismatches:
        raise ConfigError(
            f"--resume: {store.uri}/{STUDY_FILE} is damaged: it has {pluralize(len(study.trials), 'trial')}, the space "
            f"asks for {len(trials.by_id)}; they differ in {mismatches[0]}"
        )
    return study, replace(trials, notes=(*trials.notes, *_scheduler_note(store, file)))


def _stored(store: Store) -> dict[str, Any]:
    """Return the content of ``space.yaml``; empty if it cannot be read."""
    try:
        content = yaml.safe_load(store.read_bytes(SPACE_FILE))
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _resolved(store: Store) -> Any:
    """Return the space that a study was made from; None if it cannot be read."""
    return _stored(store).get("resolved")


def _scheduler_note(store: Store, file: SpaceFile) -> Iterator[str]:
    """Yield a note if the scheduler differs from the stored one, which a resumed study allows."""
    stored, now = _resolved(store), file.space.model_dump(mode="json")["scheduler"]
    old = stored.get("scheduler", now) if isinstance(stored, dict) else now
    if old != now:
        yield f"scheduler was {short(old)}, now it is {short(now)}; what was stopped stays stopped"


def _difference(store: Store, file: SpaceFile) -> str:
    stored = _resolved(store)
    if stored is None:
        return f"its {SPACE_FILE} cannot be read, and its trials are others"
    now = file.space.model_dump(mode="json")
    for key, old, new in _differences(stored, now, ""):
        if key.split(".")[0] not in ("name", "question", "resources", "scheduler"):
            return f"{key} was {short(old)}, now it is {short(new)}"
    return "a default has changed with the version of mbcl"


def _changed_base(store: Store, file: SpaceFile) -> str:
    """Describe the first key of the base experiment that differs from the stored one; empty if none does."""
    stored = _resolved(store)
    old = stored.get("experiment") if isinstance(stored, dict) else None
    if not isinstance(old, dict):
        return ""
    now = file.space.model_dump(mode="json")["experiment"]
    differences = _differences(identity(old), identity(now), "experiment")
    return next((f"{key} was {short(then)}, now it is {short(new)}" for key, then, new in differences), "")


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
        yield path, old, new
