"""The queue of trials: their order, and early stopping on the first seed; without Ray."""

from __future__ import annotations

import pytest

from mbcl.errors import ConfigError
from mbcl.orchestration.scheduling.early_stopping import StopperPerPoint, build_stopper
from mbcl.orchestration.scheduling.trial_queue import EarlyStopping, TrialQueue
from mbcl.orchestration.search_space.schedulers import build
from mbcl.study.record import Drawn, StudyRecord, TrialRecord

EPOCHS = 8


class StopBelow:
    """Stops trials whose value is below a line, from an epoch on."""

    def __init__(self, line: float, epoch: int = 1) -> None:
        self.line = line
        self.epoch = epoch
        self.seen: list[tuple[str, int]] = []

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        self.seen.append((trial_id, epoch))
        return epoch >= self.epoch and value < self.line


def study_of(num_settings: int, seeds: int = 1) -> StudyRecord:
    trials = {
        f"{setting * seeds + i}": TrialRecord(
            ordinal=setting * seeds + i, setting=setting, seed=i + 7, sampler="", objective="", parameters={}
        )
        for setting in range(num_settings)
        for i in range(seeds)
    }
    return StudyRecord(name="t", space_digest="", metric="val/retrieval/top1", mode="max", created="", trials=trials)


def run(study: StudyRecord, queue: TrialQueue, values: dict[int, float]) -> list[str]:
    """Simulate the trials of a study, an epoch each in turn; returns the order in which they started."""
    order: list[str] = []
    running: dict[str, int] = {}
    while True:
        while (key := queue.next_trial()) is not None:
            order.append(key)
            running[key] = 0
        if not running:
            assert queue.exhausted
            return order
        for key in list(running):
            running[key] += 1
            record = study.trials[key]
            if queue.on_result(key, running[key], values[record.setting]):
                record.status, record.stopped = "stopped", queue.where_stopped(key)
            elif running[key] == EPOCHS:
                record.status = "finished"
            else:
                continue
            del running[key]
            queue.on_trial_end(key)


def early_stopping(stopper, **options) -> EarlyStopping:
    return EarlyStopping(stopper=stopper, scheduler_name="below", num_epochs=lambda key: EPOCHS, **options)


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_trial_queue_without_early_stopping_runs_all_in_order(concurrency):
    study = study_of(3, 2)
    queue = TrialQueue(study, study.trials, concurrency=concurrency)
    assert [queue.next_trial() for _ in range(concurrency + 1)] == [*list(study.trials)[:concurrency], None]
    study = study_of(3, 2)
    assert run(study, TrialQueue(study, study.trials, concurrency=concurrency), dict.fromkeys(range(3), 0.5)) == list(
        "012345"
    )
    assert {record.status for record in study.trials.values()} == {"finished"}


def test_trial_queue_runs_only_the_given_trials():
    study = study_of(3)
    assert run(study, TrialQueue(study, ["2", "0"], concurrency=1), dict.fromkeys(range(3), 0.5)) == ["2", "0"]


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_early_stopping_compares_settings_on_their_first_seed_only(concurrency):
    study = study_of(3, 3)
    stopper = StopBelow(0.5, epoch=2)
    values = {0: 0.9, 1: 0.1, 2: 0.6}
    order = run(study, TrialQueue(study, study.trials, concurrency=concurrency, rule=early_stopping(stopper)), values)
    assert sorted(order) == ["0", "1", "2", "3", "6", "7", "8"], "the stopped setting's other seeds never begin"
    assert {key for key, _ in stopper.seen} == {"0", "3", "6"}, "other seeds are not observed"
    by_setting = [[record.status for record in records] for records in study.settings().values()]
    assert by_setting == [["finished"] * 3, ["stopped"] * 3, ["finished"] * 3]
    stops = [study.trials[key].stopped for key in "345"]
    assert [(stop.epoch, stop.of, stop.value, stop.first_seed) for stop in stops] == [
        (2, EPOCHS, 0.1, 7), (0, EPOCHS, None, 7), (0, EPOCHS, None, 7)
    ]  # fmt: skip
    assert stops[0].describe() == "stopped by below after 2 of 8 epochs (val/retrieval/top1 0.1000)"
    assert stops[1].describe() == "not begun: below stopped this setting with seed 7"


def test_on_trial_end_marks_the_other_seeds_of_a_stopped_setting():
    study = study_of(2, 2)
    queue = TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(StopBelow(0.5)))
    assert queue.next_trial() == "0"
    assert queue.on_result("0", 1, 0.1)
    study.trials["0"].status, study.trials["0"].stopped = "stopped", queue.where_stopped("0")
    queue.on_trial_end("0")
    assert [record.status for record in study.trials.values()] == ["stopped", "stopped", "pending", "pending"]
    assert queue.next_trial() == "2"


def test_on_result_ignores_repeated_epochs():
    study, stopper = study_of(1), StopBelow(0.5)
    queue = TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(stopper))
    assert queue.next_trial() == "0"
    assert [queue.on_result("0", epoch, 0.9) for epoch in (1, 2, 2, 1, 3)] == [False] * 5
    assert stopper.seen == [("0", 1), ("0", 2), ("0", 3)]


def test_next_trial_holds_other_seeds_until_the_first_has_ended():
    study = study_of(2, 2)
    queue = TrialQueue(study, study.trials, concurrency=4, rule=early_stopping(StopBelow(0.5)))
    assert [queue.next_trial() for _ in range(3)] == ["0", "2", None]
    assert not queue.exhausted
    study.trials["2"].status = "finished"
    queue.on_trial_end("2")
    assert [queue.next_trial(), queue.next_trial()] == ["3", None]


def test_next_trial_runs_other_seeds_after_a_failed_first():
    study = study_of(1, 2)
    queue = TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(StopBelow(0.5)))
    assert queue.next_trial() == "0"
    study.trials["0"].status = "failed"
    queue.on_trial_end("0")
    assert queue.next_trial() == "1"


def test_early_stopping_never_stops_a_setting_with_a_finished_seed():
    study = study_of(2, 3)
    queue = TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(StopBelow(0.0)))
    assert queue.next_trial() == "0"
    study.trials["0"].status = "failed"
    queue.on_trial_end("0")
    assert run(study, queue, {0: 0.1, 1: 0.1}) == ["1", "2", "3", "4", "5"]
    stopper = StopBelow(0.5)
    assert run(study, TrialQueue(study, study.unfinished(), concurrency=1, rule=early_stopping(stopper)), {0: 0.1}) == [
        "0"
    ]
    assert stopper.seen[-1] == ("0", EPOCHS), "its values are observed nevertheless"
    assert {record.status for record in study.trials.values()} == {"finished"}


def test_early_stopping_observes_the_baseline_but_never_stops_it():
    study = study_of(2)
    stopper = StopBelow(2.0)
    run(
        study,
        TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(stopper, protected_settings=frozenset({0}))),
        {0: 1, 1: 1},
    )
    assert [record.status for record in study.trials.values()] == ["finished", "stopped"]
    assert [epoch for key, epoch in stopper.seen if key == "0"] == list(range(1, EPOCHS + 1))


def test_early_stopping_never_stops_a_trial_at_its_last_epoch():
    study = study_of(1)
    run(
        study, TrialQueue(study, study.trials, concurrency=1, rule=early_stopping(StopBelow(2.0, epoch=EPOCHS))), {0: 1}
    )
    assert study.trials["0"].status == "finished"


def test_early_stopping_with_max_t_stops_all_trials(monkeypatch):
    study = study_of(2, 2)
    limited = early_stopping(
        StopBelow(0.5), end_epoch=build({"name": "asha", "max_t": 3}).end, protected_settings=frozenset({0})
    )
    run(study, TrialQueue(study, study.trials, concurrency=2, rule=limited), {0: 0.9, 1: 0.9})
    assert [record.stopped.epoch for record in study.trials.values()] == [3, 0, 3, 0]


def test_trial_queue_of_a_resume_runs_no_seed_of_a_stopped_setting():
    study = study_of(2, 2)
    run(study, TrialQueue(study, ["0"], concurrency=1, rule=early_stopping(StopBelow(0.5))), {0: 0.1, 1: 0.9})
    assert run(
        study, TrialQueue(study, study.unfinished(), concurrency=1, rule=early_stopping(StopBelow(0.5))), {1: 0.9}
    ) == [
        "2",
        "3",
    ]
    assert study.unfinished() == []
    assert study.trials["1"].stopped.epoch == 0


class ThreeSettings:
    """Proposes three settings of two seeds."""

    def __init__(self, study: StudyRecord) -> None:
        self.study = study
        self.ended_settings: list[int] = []

    @property
    def left(self) -> int:
        return 6 - len(self.study.trials)

    def propose(self) -> list[str]:
        setting = len(self.study.trials) // 2
        if setting == 3:
            return []
        fresh = study_of(setting + 1, 2).trials
        keys = list(fresh)[-2:]
        self.study.trials.update({key: fresh[key] for key in keys})
        return keys

    def tell(self, setting: int) -> None:
        self.ended_settings.append(setting)


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("races", [False, True])
def test_trial_queue_runs_the_settings_of_a_source(concurrency, races):
    study = study_of(0)
    source = ThreeSettings(study)
    queue = TrialQueue(
        study, (), concurrency=concurrency, rule=early_stopping(StopBelow(0.5)) if races else None, source=source
    )
    assert not queue.exhausted
    order = run(study, queue, {0: 0.9, 1: 0.1, 2: 0.9})
    assert sorted(order) == [key for key in "012345" if key != "3" or not races]
    assert sorted(source.ended_settings) == [0, 1, 2], "each once, when all its seeds have ended"


def stopper_of(**block):
    return build_stopper(block, mode="max")


def test_asha_keeps_the_best_at_its_rungs():
    stopper = stopper_of(name="asha", grace_period=2, reduction_factor=2)
    assert not stopper.observe("a", 1, 0.0), "before the grace period"
    assert not stopper.observe("a", 2, 0.5), "the first at a rung"
    assert stopper.observe("b", 2, 0.4), "worse than the median of those before"
    assert not stopper.observe("c", 2, 0.6)
    assert not stopper.observe("c", 3, 0.0), "between rungs"
    assert not stopper.observe("c", 4, 0.7)
    assert stopper.observe("a", 4, 0.6)
    assert not stopper.observe("a", 5, float("nan"))
    assert not stopper.observe("a", 6, 0.1)
    assert not stopper.observe("a", 2**20, 0.7), "the best one is never cut at its end"


def test_asha_does_not_decide_again_at_lower_rungs_that_were_skipped():
    stopper = stopper_of(name="asha", grace_period=1, reduction_factor=4)
    names = "abcdefgh"
    assert not any(stopper.observe(name, 5, 1.0) for name in names), "all pass the rung of epoch 4"
    values = [5, 4, 3, 2, 1, 6, 0, 7]
    assert not any(stopper.observe(name, 10, value) for name, value in zip(names, values, strict=True))
    decisions = [stopper.observe(name, 16, value) for name, value in zip(names, values, strict=True)]
    assert decisions == [False, True, True, True, True, False, True, False], "the next rung decides"


def test_asha_with_max_t_ends_all_trials():
    study = study_of(3)
    rule = {"name": "asha", "grace_period": 1, "reduction_factor": 4, "max_t": 5}
    limited = early_stopping(stopper_of(**rule), end_epoch=build(rule).end)
    run(study, TrialQueue(study, study.trials, concurrency=3, rule=limited), {0: 0.9, 1: 0.9, 2: 0.1})
    assert [record.stopped.epoch for record in study.trials.values()] == [5, 5, 1]


def test_asha_supports_mode_min():
    stopper = build_stopper({"name": "asha", "reduction_factor": 2}, mode="min")
    assert not stopper.observe("a", 1, 0.5)
    assert stopper.observe("b", 1, 0.6)
    assert not stopper.observe("c", 1, 0.4)


def test_stopper_per_point_compares_within_one_point():
    study = study_of(3)
    for record, point in zip(study.trials.values(), (0, 1, 1), strict=True):
        record.drawn = Drawn(point=point, number=0, values={})
    stopper = StopperPerPoint(study, lambda: stopper_of(name="asha", reduction_factor=2))
    assert not stopper.observe("0", 1, 0.9)
    assert not stopper.observe("1", 1, 0.5), "worse than another point's"
    assert stopper.observe("2", 1, 0.4), "worse than its own point's"


def test_median_needs_samples_and_never_pauses():
    stopper = stopper_of(name="median", grace_period=2, min_samples_required=2)
    for name, value in (("a", 0.5), ("b", 0.6)):
        assert not any(stopper.observe(name, epoch, value) for epoch in range(1, 5)), "too few trials to compare with"
    assert not stopper.observe("c", 1, 0.1), "before the grace period"
    assert stopper.observe("c", 2, 0.1)
    assert stopper.observe("c", 3, 0.1), "the rule decides again about a baseline that was not stopped"
    assert not stopper.observe("d", 2, 0.7)


@pytest.mark.parametrize(
    "block", [{"name": "asha"}, {"name": "median_stopping_rule"}, {"name": "async_hyperband", "max_t": 9}]
)
def test_scheduler_describe_names_the_metric(block):
    rule = build(block)
    assert rule.stops
    assert "val/x" in rule.describe("val/x")
    assert not build({"name": "fifo"}).stops
    with pytest.raises(ConfigError, match="unknown parameter 'x'"):
        build({**block, "x": 1})
