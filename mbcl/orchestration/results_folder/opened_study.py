"""A study as ``run_ray.py`` opens it: new, to be resumed, or to be re-evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mbcl.data.samples import differing_sources
from mbcl.errors import ConfigError, pluralize
from mbcl.io.store import Store
from mbcl.orchestration.results_folder import layout, recovery
from mbcl.orchestration.results_folder.reevaluation import reopen_for_evaluation
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.orchestration.study_options import StudyOptions
from mbcl.study.record import WEIGHTS, StudyRecord


@dataclass
class OpenedStudy:
    """The record of a study and the trials that are to run.

    Args:
        record: the content of ``study.json``, also before it is first written.
        trials: all trials of the record and the space.
        todo: the trials to run or to evaluate, by their id in the record.
        is_new: whether this command creates the study.
        is_extended: whether this command may have added trials to it.
        notes: lines for the user.
        has_begun: whether this command may have started trials. A new study that fails before is rolled back.
    """

    record: StudyRecord
    trials: Trials
    todo: dict[str, TrialSpec]
    is_new: bool = False
    is_extended: bool = False
    notes: list[str] = field(default_factory=list)
    has_begun: bool = False

    def __post_init__(self) -> None:
        self.specs = self.trials.by_id | self.todo

    def take_sources(self, sources: Mapping[str, dict[str, str]]) -> None:
        """Record what the data were made from.

        Raises:
            ConfigError: if earlier trials of the study had data that were made from something else.
        """
        for key, now in sources.items():
            if differing := differing_sources(self.record.sources.get(key, now), now):
                raise ConfigError(
                    f"experiment.data: {key.rpartition('-')[0]} is not what the study began with: {differing}; "
                    "allowed: the same data, or --name OTHER"
                )
        self.record.sources |= sources

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
        return OpenedStudy(record, trials, todo, is_extended=options.extend, notes=notes)
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


def check_same_data(study: StudyRecord, contents: Mapping[str, Sequence[str]]) -> None:
    """Compare the contents of data sets and weights with those that the study began with, and record those of new ones.

    Args:
        study: the record, changed in place.
        contents: from :class:`~mbcl.orchestration.trial.preflight.PreflightReport`.

    Raises:
        ConfigError: if the study began with another content.
    """
    for key, found in contents.items():
        known = study.data.setdefault(key, sorted(set(found)))
        if others := sorted(set(found) - set(known)):
            what = f"experiment.data: the images, labels or ids of {key.rpartition('-')[0]}"
            allowed = "another place of the same data, or --name OTHER"
            if key.startswith(WEIGHTS):
                what, allowed = f"experiment.{key}: the weights", "the same file, or --name OTHER"
            raise ConfigError(
                f"{what} are not those that the study began with: their digest was {', '.join(known)}, it is "
                f"{', '.join(others)}; allowed: {allowed}"
            )
