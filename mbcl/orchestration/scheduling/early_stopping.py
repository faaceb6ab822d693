"""Rules of early stopping: Ray Tune's schedulers, asked about one value at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from mbcl.engine.metrics_log import read_rows
from mbcl.io.store import Store
from mbcl.orchestration.results_folder.layout import trial_folder
from mbcl.orchestration.scheduling.trial_queue import EarlyStopping
from mbcl.orchestration.search_space.expansion import TrialSpec
from mbcl.orchestration.search_space.schedulers import MOST_EPOCHS, Asha, Median, build
from mbcl.orchestration.search_space.schema import Space
from mbcl.study.record import StudyRecord
from mbcl.study.settings import baselines, settings_of

EPOCH, VALUE = "epoch", "value"


@dataclass(frozen=True)
class _Named:
    """All that Ray's rules look at of a trial."""

    trial_id: str


class RayStopper:
    """A :class:`~mbcl.orchestration.scheduling.trial_queue.Stopper` that asks a scheduler of Ray Tune.

    The rules need a trial's name alone, none of Tune's own trials, so that what earlier sweeps of a study saw can be
    told again.

    Args:
        block: the space file's block.
        mode: ``min`` or ``max``.
    """

    def __init__(self, block: Mapping[str, Any], *, mode: str) -> None:
        self._trials: set[_Named] = set()
        settings = build(block)
        common: dict[str, Any] = {"time_attr": EPOCH, "metric": VALUE, "mode": mode}
        self._rule: Any
        if isinstance(settings, Asha):
            self._rule = AsyncHyperBandScheduler(
                **common,
                max_t=settings.max_t or MOST_EPOCHS,  # a trial that has reached its own end has not been stopped
                grace_period=settings.grace_period,
                reduction_factor=settings.reduction_factor,
                # Or a trial would be judged again on the rungs below the one that it has passed. What ends at max_t
                # ends by the course.
                stop_last_trials=False,
            )
        else:
            assert isinstance(settings, Median)
            self._rule = MedianStoppingRule(
                **common,
                grace_period=settings.grace_period,
                min_samples_required=settings.min_samples_required,
                # It would pause a trial for others, and a paused one loses its workers.
                min_time_slice=math.inf,  # type: ignore[arg-type]  # any number will do
            )

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Take a value in; whether the trial shall stop here. A value that is not finite decides nothing."""
        if not math.isfinite(value):
            return False
        trial = _Named(trial_id)
        if trial not in self._trials:
            self._trials.add(trial)
            self._rule.on_trial_add(None, trial)
        found = self._rule.on_trial_result(None, trial, {EPOCH: epoch, VALUE: value})
        if isinstance(self._rule, MedianStoppingRule):
            # It takes nothing in from a trial that it has stopped; the baseline goes on all the same.
            self._rule._stopped_trials.discard(trial)
        return bool(found == TrialScheduler.STOP)


class StopperPerPoint:
    """A stopper for every point of the grids, so that what is tuned apart races apart.

    Args:
        study: says to which point a trial belongs.
        make: makes one.
    """

    def __init__(self, study: StudyRecord, make: Callable[[], RayStopper]) -> None:
        self._study = study
        self._make = make
        self._stoppers: dict[int, RayStopper] = {}

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """As :meth:`RayStopper.observe`, among the trials of the same point."""
        drawn = self._study.trials[trial_id].drawn
        point = drawn.point if drawn else 0
        if point not in self._stoppers:
            self._stoppers[point] = self._make()
        return self._stoppers[point].observe(trial_id, epoch, value)


def build_early_stopping(
    space: Space, study: StudyRecord, specs: Mapping[str, TrialSpec], store: Store
) -> EarlyStopping | None:
    """The race of a study's settings, with all that its trials have measured so far; None if nothing is stopped.

    Rows of trials that go on, about which nobody is known to have decided before a kill, are not told here but by the
    trials' drivers.

    Args:
        space: what is asked for.
        study: what is done.
        specs: all trials by name; those of settings that are proposed later are found here, too.
        store: the results folder.
    """
    rule = build(space.scheduler)
    if not rule.stops:
        return None
    # Settings of an adaptive search are drawn for each point of the grids by itself; others for all points alike.
    stopper = StopperPerPoint(study, lambda: RayStopper(space.scheduler, mode=study.mode))
    first: dict[int, str] = {}
    unfinished = set(study.unfinished())
    for key, record in study.trials.items():
        if first.setdefault(record.setting, key) == key:
            end = record.stopped.epoch if record.stopped else record.judged if key in unfinished else math.inf
            for row in read_rows(store.child(trial_folder(key))):
                epoch, value = row.get("epoch") or 0, row.get(study.metric)
                if value is not None and epoch <= end:
                    stopper.observe(key, int(epoch), float(value))
    return EarlyStopping(
        stopper=stopper,
        by=space.scheduler.name,
        epochs=lambda key: space.kind.num_epochs(specs[key].experiment),
        end=rule.end,
        # Those of an adaptive search have no counterparts to be compared with one by one.
        protected=frozenset(
            () if space.search.adaptive else (found.id for found in baselines(study, settings_of(study)))
        ),
    )
