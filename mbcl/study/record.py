"""``study.json``: the single source of truth for the trials of a study and for their status."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mbcl.errors import ConfigError, pluralize
from mbcl.io.store import Store, read_text, write_text

STUDY_FILE = "study.json"
SPACE_FILE = "space.yaml"
ERROR_FILE = "error.log"
"""In the folder of a trial that failed: the whole text of its error."""

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Allowed names of studies and trials. They become folder names, so path separators and ``..`` are excluded."""

WEIGHTS = "encoder.weights"
"""What the names of files of initial weights begin with in :attr:`StudyRecord.data`."""
EQUIVALENCE = 0.01
"""Difference in the headline metric that does not matter unless a study names another: one point of an accuracy."""

Stage = Literal["", "tuning", "confirmation"]
Status = Literal["pending", "running", "finished", "stopped", "failed"]


class _Record(BaseModel):
    """A part of ``study.json``; a key that it does not declare is an error."""

    model_config = ConfigDict(extra="forbid")


class Stopped(_Record):
    """The epoch at which a scheduler stopped a trial, and the reason.

    ``by`` is the scheduler. ``epoch`` is the number of finished epochs out of ``of``; it is 0 if the trial never
    began, because its setting had been stopped with ``first_seed``. ``metric`` and ``value`` are the scheduler's
    criterion and its value.
    """

    by: str
    epoch: int
    of: int
    metric: str
    value: float | None = None
    first_seed: int

    def describe(self) -> str:
        """Describe the stop in one line."""
        if self.epoch == 0:
            return f"not begun: {self.by} stopped this setting with seed {self.first_seed}"
        value = "" if self.value is None else f" ({self.metric} {self.value:.4f})"
        return f"stopped by {self.by} after {self.epoch} of {pluralize(self.of, 'epoch')}{value}"


class Drawn(_Record):
    """The values that an adaptive search drew for a setting: the ``number``-th draw at a grid ``point``."""

    point: int
    number: int
    values: dict[str, Any]


class TrialRecord(_Record):
    """One trial: a setting with one seed.

    Attributes:
        parameters: the swept keys with their resolved values, in the order of the space file.
        metrics: the final metrics by their public names.
        seconds: the wall time by stage.
        evaluation: the block with which ``--eval-only`` replaced the experiment's own; empty without a replacement.
        drawn: the draw of an adaptive search, by the paths of the domains.
        stopped: the stop by a scheduler. The last values of a stopped trial are not final metrics.
        judged: the last epoch at which a scheduler decided whether the trial continues.
        is_control: whether its setting was added as a control, and is no setting of the space.
        equal_passes: number of the setting with which its own is compared at equal forward passes; None for none.
        stage: in a study with nuisance keys, whether the trial chooses their values or measures the chosen ones.
        arm: the setting without its nuisance keys, numbered in the order of the study; None without nuisance keys.
        nuisance: the nuisance keys with their values, which ``parameters`` does not have.
        diverged: whether the trial failed because its training was not finite, which is a result of its values.
    """

    ordinal: int
    setting: int
    seed: int
    sampler: str
    objective: str
    parameters: dict[str, Any]
    status: Status = "pending"
    error: str = ""
    attempts: int = 0
    metrics: dict[str, float | int | None] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    drawn: Drawn | None = None
    stopped: Stopped | None = None
    judged: int = 0
    is_control: bool = False
    equal_passes: int | None = None
    stage: Stage = ""
    arm: int | None = None
    nuisance: dict[str, Any] = Field(default_factory=dict)
    diverged: bool = False

    @property
    def has_diverged(self) -> bool:
        """Whether it ended because its training was not finite: a result of its values, and of no crash."""
        return self.status == "failed" and self.diverged

    def value_of(self, metric: str) -> float | None:
        """Return a final metric, or None if it was not measured or is not finite."""
        value = self.metrics.get(metric)
        return None if value is None or not math.isfinite(value) else value


class Efficiency(_Record):
    """How a run used its machine: device-seconds, where a device is a core or, where trials compute on GPUs, a GPU.

    Attributes:
        devices: number of devices.
        device: their kind.
        wall: seconds from the command to the report.
        work: device-seconds that trials spent in epochs (training, embedding, planning) and evaluations.
        busy: device-seconds of the trials from start to end.
    """

    devices: float
    device: Literal["core", "GPU"]
    wall: float
    work: float
    busy: float

    @property
    def share(self) -> float:
        """The efficiency: the share of all device-seconds that is work."""
        return self.work / self._all

    @property
    def _all(self) -> float:
        return self.devices * self.wall

    def describe(self) -> str:
        """Describe in one line how much of the machine was used, and what the rest was."""
        return (
            f"{self.share:.2f} of {self.devices:g} {self.device}{'s' * (self.devices != 1)} x {self.wall:.1f} s were "
            f"epochs and evaluations, {(self.busy - self.work) / self._all:.2f} starts and ends of trials, "
            f"{1 - self.busy / self._all:.2f} outside trials: starting Ray, checks, waiting for the last trials"
        )


class StudyRecord(_Record):
    """A whole study.

    Attributes:
        id: 8 random hexadecimal digits; no other study has them. Empty in studies of mbcl 0.2 and before.
        trials: the trials by ``trial_id``, in the order of the space.
        equivalence: the difference in the headline metric that does not matter, in its units.
        searched: whether settings were drawn from domains, so that the best is looked for rather than all compared.
        nuisance: the swept keys of which every setting takes its own best value, chosen by ``metric``.
        left_out: the draws of an adaptive search that became no setting: repeats and invalid experiments.
        threads: the torch threads of a worker where the space leaves them to mbcl; a resume keeps them, because the
            last bits of a sum depend on them.
        data: the digests of the contents of its data sets, by name, settings and swept places of the data set, and of
            its files of initial weights, by :data:`WEIGHTS` and place.
        efficiency: how the last run that trained used its machine; None if there was none yet.
        sources: by data set, what its samples were made from, where other sources make others; see
            :class:`mbcl.data.SampleSet`.
    """

    format: Literal[1] = 1
    name: str
    id: str = ""
    question: str = ""
    space_digest: str
    baseline: dict[str, Any] = Field(default_factory=dict)
    metric: str
    mode: Literal["min", "max"]
    equivalence: float = EQUIVALENCE
    searched: bool = False
    nuisance: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str
    trials: dict[str, TrialRecord]
    left_out: list[Drawn] = Field(default_factory=list)
    threads: int | None = None
    data: dict[str, list[str]] = Field(default_factory=dict)
    efficiency: Efficiency | None = None
    sources: dict[str, dict[str, str]] = Field(default_factory=dict)

    @field_validator("trials")
    @classmethod
    def _stay_inside(cls, trials: dict[str, TrialRecord]) -> dict[str, TrialRecord]:
        """Refuse names that leave the results folder: a trial's name is a folder's, and the file is untrusted input."""
        for name in trials:
            if not SAFE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no trial's name")
        return trials

    @property
    def is_search(self) -> bool:
        """Whether results choose among several settings that were drawn, and measure the chosen ones themselves."""
        if self.nuisance:
            return False  # fresh seeds measure the chosen ones
        drawn = self.searched or any(trial.drawn for trial in self.trials.values())
        return drawn and len({trial.setting for trial in self.trials.values()}) > 1

    def is_result(self, trial: TrialRecord) -> bool:
        """Return whether a trial has ended with a result, so that ``--resume`` does not run it again.

        Among candidates, of which the best is looked for, one that diverged is the worst; elsewhere it is a failure.
        """
        is_candidate = trial.stage == "tuning" or self.is_search
        return trial.status in ("finished", "stopped") or (is_candidate and trial.has_diverged)

    def unfinished(self) -> list[str]:
        """Return the trials that ``--resume`` runs: all without a result."""
        return [key for key, trial in self.trials.items() if not self.is_result(trial)]

    def ordered(self) -> dict[str, TrialRecord]:
        """Return the trials by id, sorted into the order of the study."""
        return dict(sorted(self.trials.items(), key=lambda item: (item[1].ordinal, item[0])))

    def settings(self) -> dict[int, list[TrialRecord]]:
        """Group the trials by setting, in the order of the study; each list is in the order of its seeds."""
        groups: dict[int, list[TrialRecord]] = {}
        for trial in self.ordered().values():
            groups.setdefault(trial.setting, []).append(trial)
        return groups


def write_study(store: Store, study: StudyRecord) -> None:
    """Write ``study.json`` atomically."""
    write_text(store, STUDY_FILE, json.dumps(study.model_dump(mode="json"), indent=1, allow_nan=False))


def read_study(store: Store) -> StudyRecord:
    """Read ``study.json``.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    try:
        return StudyRecord.model_validate_json(read_text(store, STUDY_FILE))
    except FileNotFoundError as error:
        raise ConfigError(f"{store.uri}: holds no {STUDY_FILE}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{store.uri}/{STUDY_FILE}: damaged: {key}{': ' if key else ''}{first['msg']}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{store.uri}/{STUDY_FILE}: damaged: {error}") from error
