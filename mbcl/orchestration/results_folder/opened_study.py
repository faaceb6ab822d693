"""A study as ``run_ray.py`` opens it: new, to be resumed, or to be re-evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from mbcl.config.experiment import Experiment
from mbcl.data.samples import differing_sources
from mbcl.errors import ConfigError, pluralize
from mbcl.evaluation import EVALUATION_FILE
from mbcl.evaluation.pieces import has_earlier_draws
from mbcl.io.store import Store
from mbcl.orchestration.results_folder import layout, recovery
from mbcl.orchestration.results_folder.reevaluation import reopen_for_evaluation
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.orchestration.study_options import StudyOptions
from mbcl.orchestration.trial.preflight import PreflightReport, data_key, distinct_experiments, swept_places
from mbcl.study.nuisance import unconfirmed
from mbcl.study.record import StudyRecord, read_study


@dataclass
class OpenedStudy:
    """The record of a study and the trials that are to run.

    Args:
        record: the content of ``study.json``, also before it is first written.
        trials: all trials of the record and the space.
        todo: the trials to run or to evaluate, by their id in the record.
        checked: the trials whose data and models are checked before: those of ``todo``, the probes of a search, and the
            candidates of arms whose chosen values are still to be measured.
        is_new: whether this command creates the study.
        is_extended: whether this command may have added trials to it.
        notes: lines for the user.
        has_begun: whether this command may have started trials. A new study that fails before is rolled back.
    """

    record: StudyRecord
    trials: Trials
    todo: dict[str, TrialSpec]
    checked: dict[str, TrialSpec] = field(init=False)
    is_new: bool = False
    is_extended: bool = False
    notes: list[str] = field(default_factory=list)
    has_begun: bool = False

    def __post_init__(self) -> None:
        self.specs = self.trials.by_id | self.todo
        self.checked = self.todo | {spec.trial_id: spec for spec in self.trials.probes}

    def experiments_to_check(self) -> dict[int, AnyExperiment]:
        """Return the first experiment of every setting of :attr:`checked`."""
        return distinct_experiments([*self.checked.values()])

    def take_data(self, report: PreflightReport) -> None:
        """Compare the data and weights with those that the study began with, and record those of new ones.

        Raises:
            ConfigError: if the study, or the trial that an evaluation measures again, began with others.
        """
        for trial_id, spec in self.checked.items():
            if spec.setting in report.contents:
                self._take_data_of(trial_id, spec, report.contents[spec.setting], report.sources[spec.setting])
        for key, found in report.weights.items():
            _check_content(f"{key}: the weights", found, self.record.data.setdefault(key, [found]), "the same file")

    def _take_data_of(self, trial_id: str, spec: TrialSpec, content: str, sources: dict[str, str]) -> None:
        """Compare the data of a trial with those of its record, whose swept places an evaluation may change."""
        experiment = cast(Experiment, spec.experiment)
        record = self.record.trials.get(trial_id)
        now = swept_places(spec)
        then = now if record is None else swept_places(record)
        name = " ".join([experiment.data.name, *(f"with {place} {value}" for place, value in now.items())])
        key, who = data_key(experiment, then), _began(trial_id, then)
        if sources and (differing := differing_sources(self.record.sources.setdefault(key, sources), sources)):
            raise ConfigError(
                f"experiment.data: {name} is not what {who} began with: {differing}; "
                "allowed: the same data, or --name OTHER"
            )
        known = self.record.data.setdefault(key, [content])
        _check_content(
            f"data: the images, labels or ids of {name}", content, known, "another place of the same data", who
        )

    def keep_as_stored(self, store: Store) -> None:
        """Undo what an extension has changed in the record, in place: others hold it."""
        stored = read_study(store)
        for key in StudyRecord.model_fields:
            setattr(self.record, key, getattr(stored, key))
        self.is_extended = False

    def add(self, specs: Sequence[TrialSpec]) -> None:
        """Add trials that an adaptive search has drawn."""
        self.specs |= {spec.trial_id: spec for spec in specs}


def open_study(options: StudyOptions, file: SpaceFile, trials: Trials, store: Store) -> OpenedStudy:
    """Read the study's record, or make that of a new study, as the options require. Writes nothing.

    Raises:
        ConfigError: if the folder lacks the study that the options require, or contains one that they would overwrite.
    """
    title = options.name or file.space.name or options.folder
    if options.eval_only:
        file.space.kind.evaluation(
            (*trials.specs, *trials.probes)[0].experiment
        )  # raises if the kind has no evaluation
        record, todo, trials, notes = reopen_for_evaluation(store, file, trials)
        return OpenedStudy(record, trials, todo, notes=notes)
    if options.resumes:
        record, trials, notes = recovery.recover(store, file, trials, title, extends=options.extend)
        todo = {key: trials.by_id[key] for key in record.unfinished()}
        study = OpenedStudy(record, trials, todo, is_extended=options.extend, notes=notes)
        arms = {choice.arm for choice in unconfirmed(record)}
        study.checked |= {key: spec for key, spec in trials.by_id.items() if spec.arm in arms}
        return study
    layout.check_new(store, options.folder)
    return OpenedStudy(layout.new_study(file, trials, title), trials, trials.by_id, is_new=True)


def check_exclusive(options: StudyOptions) -> None:
    """Check that no options contradict each other.

    Raises:
        ConfigError: naming the options.
    """
    chosen = [f"--{key.replace('_', '-')}" for key in ("resume", "extend", "eval_only") if getattr(options, key)]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: choose one; --resume and --extend evaluate what they run")
    if options.address == "":
        raise ConfigError("--address: found an empty text; allowed: auto, or HOST:PORT of a cluster's head")


def check_draws(store: Store, study: StudyRecord, option: str) -> None:
    """Refuse to add trials to those that were evaluated on other draws of the views than new ones will be.

    Raises:
        ConfigError: naming the first of them.
    """
    for key, record in study.ordered().items():
        if record.status != "finished" or record.stage == "tuning":
            continue
        try:
            content = store.child(layout.trial_folder(key)).read_bytes(EVALUATION_FILE)
            has_others = has_earlier_draws(json.loads(content))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            continue  # lost or damaged: the metrics in the record do not tell on which draws they were measured
        if has_others:
            raise ConfigError(
                f"--{option}: trial {key} of {store.uri} was evaluated on draws of two views each, which an earlier "
                "revision of mbcl made; further trials would be measured on other draws; allowed: first --eval-only "
                "with the space as it was, which measures the finished trials again, or --name OTHER"
            )


def prepare_folder(store: Store, file: SpaceFile, study: OpenedStudy, *, resume: bool) -> None:
    """Remove the leftovers of an earlier run from the locked folder, and write the record of a new study.

    With ``resume`` a damaged record, which will be replaced, is kept under another name.
    """
    layout.remove_scratch(store)
    recovery.remove_temporaries(store)
    if resume:
        recovery.keep_damaged(store)
    if study.is_new or study.is_extended:
        layout.create(store, file, study.trials, study.record)


def resume_notes(
    store: Store, file: SpaceFile, study: OpenedStudy, *, draws_more: bool, log: Callable[[str], None]
) -> list[str]:
    """Read the checkpoints and rows of trials that continue, and describe what is damaged or differs from the space.

    ``draws_more`` means that a search will draw further trials, which are evaluated like the existing ones. ``log``
    takes a line before the checkpoints are read, which may take minutes.

    Raises:
        OSError: if storage cannot be reached.
    """
    existing = set(store.list(layout.TRIALS))
    begun = [key for key in study.todo if key in existing]
    if begun:
        log(f"verifying the checkpoints of {pluralize(len(begun), 'trial')}")
    specs = study.specs if draws_more else study.todo
    blocks = {key: file.space.kind.evaluation(spec.experiment) for key, spec in specs.items()}
    return recovery.notes_of_trials(store, begun) + recovery.notes_of(study.record, blocks)


def _began(trial_id: str, places: Mapping[str, str]) -> str:
    """Name what began with some data: the study, or of a study that sweeps places the trial with its own."""
    if not places:
        return "the study"
    return f"trial {trial_id}, with {', '.join(f'{place} {value}' for place, value in places.items())},"


def _check_content(what: str, found: str, known: Sequence[str], allowed: str, who: str = "the study") -> None:
    """Compare the digest of a content with those that are known.

    Raises:
        ConfigError: if it is none of them.
    """
    if found not in known:
        raise ConfigError(
            f"experiment.{what} are not those that {who} began with: their digest was {', '.join(known)}, it is "
            f"{found}; allowed: {allowed}, or --name OTHER"
        )
