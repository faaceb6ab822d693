"""Early stopping: asynchronous successive halving, the median stopping rule, and their state from a study's rows.

The decisions are those of Ray Tune's ``AsyncHyperBandScheduler`` and ``MedianStoppingRule`` in Ray 2.60. A rule here
needs only names, epochs and values, so that it can replay the rows of earlier sweeps. It never pauses a trial: a paused
one would lose its workers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mbcl.engine.metrics_log import read_rows
from mbcl.io.store import Store
from mbcl.orchestration.results_folder.layout import trial_folder
from mbcl.orchestration.scheduling.trial_queue import EarlyStopping, Stopper
from mbcl.orchestration.search_space.expansion import TrialSpec
from mbcl.orchestration.search_space.schedulers import MAX_EPOCHS, Asha, Median, build
from mbcl.orchestration.search_space.schema import Space
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines, settings_of


class AsyncSuccessiveHalving:
    """Asynchronous successive halving (ASHA) with one bracket.

    The rungs are at ``grace_period * reduction_factor**k`` epochs, up to ``max_t``. A value is compared at the highest
    rung that the trial has reached, once a rung; a trial that is measured rarely skips the rungs in between. The trial
    stops if the value is worse than the quantile ``1 - 1/reduction_factor`` of the values that other trials have
    recorded at that rung. The value is recorded in any case. What ends at ``max_t`` is not decided here.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv 1810.05934.
    """

    def __init__(self, *, mode: str, grace_period: int, reduction_factor: float, max_t: int) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._percent = (1 - 1 / reduction_factor) * 100
        # Rounded as in Ray. The logarithms may lose a rung at max_t itself, where every trial ends anyway.
        num_rungs = int(np.log(max_t / grace_period) / np.log(reduction_factor) + 1)
        # Of each rung its epochs, and the signed values by trial. Highest first: the first match is the rung to use.
        self._rungs: list[tuple[float, dict[str, float]]] = [
            (grace_period * reduction_factor**k, {}) for k in reversed(range(num_rungs))
        ]

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Record a value; return whether the trial should stop. A value that is not finite is ignored."""
        if not math.isfinite(value):
            return False
        recorded = next((values for milestone, values in self._rungs if epoch >= milestone), None)
        if recorded is None or trial_id in recorded:
            return False
        score, others = self._sign * value, list(recorded.values())
        recorded[trial_id] = score
        return bool(others and score < np.percentile(others, self._percent))


class MedianStopping:
    """The median stopping rule.

    A trial stops if its best value so far is worse than the median of the running means of the other trials that have
    come as far. A running mean covers the epochs from ``grace_period`` to the trial's present epoch.

    No trial stops before ``grace_period``, or before ``min_samples_required`` others have come as far.

    References:
        Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017.
    """

    def __init__(self, *, mode: str, grace_period: int, min_samples_required: int) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._grace_period = grace_period
        self._min_samples_required = min_samples_required
        self._rows: dict[str, list[tuple[int, float]]] = {}

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Record a value; return whether the trial should stop. A value that is not finite is ignored."""
        if not math.isfinite(value):
            return False
        own = self._rows.setdefault(trial_id, [])
        own.append((epoch, self._sign * value))
        if epoch < self._grace_period:
            return False
        windows = (
            [score for at, score in rows if self._grace_period <= at <= epoch]
            for rows in self._rows.values()
            if rows is not own and rows[-1][0] >= epoch
        )
        means = [mean for window in windows if window and math.isfinite(mean := float(np.mean(window)))]
        if len(means) < self._min_samples_required:
            return False
        return bool(max(score for _, score in own) < np.median(means))


def build_stopper(block: Mapping[str, Any], *, mode: str) -> Stopper:
    """Return the rule, without any values, of the block of a scheduler that stops trials."""
    settings = build(block)
    if isinstance(settings, Asha):
        return AsyncSuccessiveHalving(
            mode=mode,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
            max_t=settings.max_t or MAX_EPOCHS,
        )
    assert isinstance(settings, Median)
    return MedianStopping(
        mode=mode, grace_period=settings.grace_period, min_samples_required=settings.min_samples_required
    )


class StopperPerPoint:
    """One rule for every point of the grids, which ``make`` makes: settings are compared only within their point."""

    def __init__(self, study: StudyRecord, make: Callable[[], Stopper]) -> None:
        self._study = study
        self._stoppers: dict[int, Stopper] = defaultdict(make)

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Record a value among the trials of the same point; return whether the trial should stop."""
        drawn = self._study.trials[trial_id].drawn
        return self._stoppers[drawn.point if drawn else 0].observe(trial_id, epoch, value)


def _compared_with(study: StudyRecord) -> Iterator[Setting]:
    """Yield the settings with which others are compared: the baselines and the controls."""
    settings = settings_of(study)
    yield from baselines(study, settings)
    controls = {setting.equal_passes for setting in settings}
    yield from (setting for setting in settings if setting.id in controls)


def build_early_stopping(
    space: Space, study: StudyRecord, specs: Mapping[str, TrialSpec], store: Store
) -> EarlyStopping | None:
    """Return a study's early stopping, with the rows of earlier sweeps replayed; None if the scheduler stops no trial.

    A kill may separate the last rows of an unfinished trial from their decision. Rows beyond the epoch up to which the
    study's record says that the trial was judged are not replayed here: the trial's driver reports them again.
    ``specs`` has all trials by name; those of settings that are proposed later must be added to the same mapping.
    """
    rule = build(space.scheduler)
    if not rule.stops:
        return None
    # An adaptive search tunes each point of the grids separately. Other settings are compared together.
    stopper = StopperPerPoint(study, lambda: build_stopper(space.scheduler, mode=study.mode))
    first_trials: dict[int, str] = {}
    unfinished = set(study.unfinished())
    for key, record in study.trials.items():
        if first_trials.setdefault(record.setting, key) == key:
            end = record.stopped.epoch if record.stopped else record.judged if key in unfinished else math.inf
            for row in read_rows(store.child(trial_folder(key))):
                epoch, value = row.get("epoch") or 0, row.get(study.metric)
                if value is not None and epoch <= end:
                    stopper.observe(key, int(epoch), float(value))
    return EarlyStopping(
        stopper=stopper,
        scheduler_name=space.scheduler.name,
        num_epochs=lambda key: space.kind.num_epochs(specs[key].experiment),
        end_epoch=rule.end,
        # Settings of an adaptive search are not paired with a baseline, so it protects none.
        protected_settings=frozenset(
            () if space.search.adaptive else (setting.id for setting in _compared_with(study))
        ),
    )
