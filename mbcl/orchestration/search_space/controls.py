"""The control of equal forward passes: the baseline, trained for as many epochs as planning would have paid for.

Settings that plan on fresh embeddings make more forward passes than their baseline in the same number of epochs; see
:mod:`mbcl.engine.plan_times` for how they are counted. The control of such a setting is its baseline with the fewest
epochs in which it makes as many. It may lack one per cent, where that saves a whole epoch: a plan embeds every sample
and an epoch trains on whole batches, so six epochs with six plans are a thousandth more than eight without. Settings
that make up to one per cent more than their baseline need no control.

Where samples are split by group or batches are of one source, the seeds train on unequal numbers of samples. Passes are
those of ten splits, whatever the seeds of the study: one that is extended keeps its controls.

The learning-rate schedule is stretched over the epochs of the control, its warm-up included. Settings that need the
same control share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.engine import Samples, check_samples, forward_passes, load_splits, split_data
from mbcl.errors import ConfigError, pluralize
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment, identity_of
from mbcl.study.settings import Setting, baseline_for, columns_of, labels, shared_columns, singled_out

EPOCHS = "train.epochs"
SPLITS = 10
"""The splits of the data on which forward passes are counted, those of the seeds 0 to 9."""


@dataclass(frozen=True)
class Configured:
    """A setting.

    Args:
        parameters: the swept keys with their resolved values, without nuisance keys.
        experiment: the resolved configuration, with any seed.
        nuisance: the nuisance keys with their resolved values.
        arm: a text that is equal for settings that differ in nuisance keys alone.
    """

    parameters: dict[str, Any]
    experiment: AnyExperiment
    nuisance: dict[str, Any] = field(default_factory=dict)
    arm: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """The flat columns of all its swept keys."""
        return columns_of(self.experiment.sampler.name, self.experiment.objective.name, self.parameters | self.nuisance)

    @property
    def columns_of_arm(self) -> dict[str, Any]:
        """The flat columns of its swept keys without nuisance keys."""
        return columns_of(self.experiment.sampler.name, self.experiment.objective.name, self.parameters)


@dataclass(frozen=True)
class Controls:
    """The controls of a space.

    Args:
        settings: the settings that are added.
        control_of: by number of a setting, the number of its control. Added settings count on from the others.
        notes: why they are added, one line for each.
    """

    settings: tuple[Configured, ...]
    control_of: dict[int, int]
    notes: tuple[str, ...]


class SampleReader:
    """Reads the training samples of experiments; every data set is loaded once."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[Samples, ...]] = {}

    def __call__(self, experiment: Experiment) -> tuple[Samples, ...]:
        """Return the training samples of each of ``SPLITS`` splits.

        Raises:
            ConfigError: if the data cannot be read on this machine, or the experiment does not fit their number.
        """
        key = experiment.data.model_dump_json()
        try:
            if key not in self._samples:
                loaded = load_splits(experiment.data)
                splits = (split_data(loaded, experiment.data, seed=seed) for seed in range(SPLITS))
                self._samples[key] = tuple(split.samples for split in splits)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the checks before the first trial warn
                check_samples(experiment, self._samples[key][0])
        except ConfigError as error:
            raise ConfigError(f"control: equal_passes counts the training images: experiment.{error}") from error
        return self._samples[key]


def equal_passes(
    settings: Sequence[Configured],
    baseline: Mapping[str, Any],
    samples_of: Callable[[Experiment], Sequence[Samples]],
) -> Controls:
    """Return the controls of all settings that make more forward passes than their baseline.

    Args:
        settings: all settings of the space.
        baseline: the resolved baseline.
        samples_of: returns the training samples of an experiment, those of several splits; of as many for each.
    """
    columns = [setting.columns for setting in settings]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for each in settings:
        by_arm.setdefault(each.arm, []).append(each.columns_of_arm)
    names = dict(zip(by_arm, labels([shared_columns(candidates) for candidates in by_arm.values()]), strict=True))
    shown = [Setting(i, names[each.arm], each.columns, ()) for i, each in enumerate(settings)]
    candidates = [setting for setting, fits in zip(shown, singled_out(columns, baseline), strict=True) if fits]
    numbers = {identity_of(each.experiment): number for number, each in enumerate(settings)}
    added: list[Configured] = []
    control_of: dict[int, int] = {}
    notes: dict[str, dict[str, None]] = {}  # of ordered sets: candidates of one setting say the same
    for setting in shown:
        reference = baseline_for(baseline, setting, candidates)
        if reference is None:
            continue
        longer, ours, theirs = (
            settings[reference.id],
            settings[reference.id].experiment,
            settings[setting.id].experiment,
        )
        assert isinstance(ours, Experiment)
        assert isinstance(theirs, Experiment)
        splits = samples_of(ours)
        passes, own_passes = _passes(theirs, samples_of(theirs)), _passes(ours, splits)
        if own_passes >= _enough(passes):
            continue
        control = _with_as_many_passes(ours, passes, splits)
        number = numbers.setdefault(identity_of(control), len(settings) + len(added))
        if number == len(settings) + len(added):
            epochs = {EPOCHS: control.train.epochs}
            added.append(Configured(longer.parameters | epochs, control, longer.nuisance, f"{longer.arm} {epochs}"))
        control_of[setting.id] = number
        duration = f"for {pluralize(control.train.epochs, 'epoch')} instead of {ours.train.epochs}"
        head = f"control: {reference.label} is also trained {duration}, for as many forward passes as "
        counts = f"{passes // len(splits):,} instead of {own_passes // len(splits):,}"
        notes.setdefault(head, {})[f"{setting.label} ({counts})"] = None
    lines = tuple(head + ", ".join(rest) for head, rest in notes.items())
    nothing = "control: equal_passes adds nothing: no setting makes over 1 % more forward passes than its baseline"
    return Controls(tuple(added), control_of, lines or (nothing,))


def _passes(experiment: Experiment, splits: Sequence[Samples]) -> int:
    """Return the forward passes of all splits together."""
    return sum(forward_passes(experiment, samples) for samples in splits)


def _enough(passes: int) -> int:
    """Return 99 % of so many forward passes."""
    return passes - passes // 100


def _with_as_many_passes(experiment: Experiment, passes: int, splits: Sequence[Samples]) -> Experiment:
    """Return the experiment with the most epochs that make no more passes, or one more if these are not enough.

    It makes fewer passes now. The warm-up is stretched alike.
    """

    def passes_in(epochs: int) -> int:
        return _passes(_stretched(experiment, epochs), splits)

    epochs = passes * experiment.train.epochs // _passes(experiment, splits)
    while passes_in(epochs) > passes:
        epochs -= 1
    while passes_in(epochs + 1) <= passes:
        epochs += 1
    return _stretched(experiment, epochs if passes_in(epochs) >= _enough(passes) else epochs + 1)


def _stretched(experiment: Experiment, epochs: int) -> Experiment:
    train = experiment.train.model_copy(update={"epochs": epochs})
    warmup_epochs = experiment.schedule.warmup_epochs * epochs / experiment.train.epochs
    schedule = experiment.schedule.model_copy(update={"warmup_epochs": warmup_epochs})
    return experiment.model_copy(update={"train": train, "schedule": schedule})
