"""Adaptive search: what is drawn, told and told again; Optuna itself, trials that are made up."""

from __future__ import annotations

import math

import pytest

from mbcl.errors import ConfigError
from mbcl.orchestration.results_folder.layout import new_study
from mbcl.orchestration.results_folder.reevaluation import evaluation_blocks
from mbcl.orchestration.scheduling.optuna_search import OptunaSearch
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.search_space.expansion import expand, space_digest
from mbcl.orchestration.search_space.replay import with_drawn_trials
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.record import Stopped, StudyRecord

optuna = pytest.importorskip("optuna")

METRIC = "val/retrieval/mrr"
SEARCH = {
    "baseline": {"sampler": "shuffle"},
    "seeds": [3, 4],
    "space": {
        "sampler": {"grid": [{"name": "shuffle"}, {"name": "osgd", "k": {"randint": [8, 15]}, "q": 2}]},
        "optimizer.lr": {"loguniform": [0.001, 10.0]},
    },
    "search": {"name": "optuna", "num_samples": 12, "n_startup_trials": 4},
}


def value_of(parameters: dict, seed: int) -> float:
    """Best at a learning rate of 0.1; a seed moves all settings alike."""
    return 1 - abs(math.log10(parameters["optimizer.lr"]) + 1) / 4 + seed / 1000


class Run:
    """A search that is played through, a trial at a time, from a record on."""

    def __init__(self, space, study: StudyRecord | None = None) -> None:
        self.file = read_space(space)
        trials = expand(self.file)
        self.study = study or new_study(self.file, trials, "test")
        self.said: list[str] = []
        self.specs = {spec.trial_id: spec for spec in with_drawn_trials(self.file, trials, self.study).specs}
        assert set(self.specs) == set(self.study.trials), "a record gives its trials' names again"
        self.source = OptunaSearch(self.file, self.study, trials.total, added=self.add, log=self.said.append)

    def add(self, specs) -> None:
        self.specs |= {spec.trial_id: spec for spec in specs}

    def play(self, most: int = 10**6, concurrency: int = 1, fails=(), stops=(), diverges=()) -> Run:
        course = TrialQueue(self.study, self.study.unfinished(), concurrency=concurrency, source=self.source)
        running: list[str] = []
        while most > 0:
            while (key := course.next_trial()) is not None:
                running.append(key)
            if not running:
                assert course.exhausted
                break
            key, most = running.pop(0), most - 1
            record = self.study.trials[key]
            value = value_of(record.parameters, record.seed)
            if record.setting in (*fails, *diverges):
                record.status, record.diverged = "failed", record.setting in diverges
            elif record.setting in stops:
                record.status = "stopped"
                record.stopped = Stopped(by="asha", epoch=1, of=9, metric=METRIC, value=value / 2, first_seed=3)
            else:
                record.status, record.metrics = "finished", {METRIC: value}
            course.on_trial_end(key)
        return self

    def told(self, point: int) -> list[tuple[str, float | None]]:
        trials = self.source._tuners[point]._study.get_trials()
        return [(trial.state.name, trial.value) for trial in trials]


@pytest.fixture
def space(space_file):
    return space_file(SEARCH)


def test_a_search_draws_for_every_point_of_the_grid_and_replicates_every_setting(space):
    run = Run(space).play()
    settings = run.study.settings()
    assert len(settings) == 24
    assert [[record.seed for record in records] for records in settings.values()] == [[3, 4]] * 24
    assert all(records[0].parameters == records[1].parameters for records in settings.values())
    assert [records[0].sampler for records in settings.values()] == ["shuffle", "osgd"] * 12
    for key, record in run.study.trials.items():
        spec = run.specs[key]
        assert key == f"{spec.ordinal:03d}-{spec.experiment.digest}"
        assert 0.001 <= record.parameters["optimizer.lr"] <= 10
        assert record.sampler == "shuffle" or 8 <= record.parameters["sampler"]["k"] < 15
        assert set(record.drawn.values) == {"optimizer.lr"} | ({"sampler.k"} if record.sampler == "osgd" else set())


def test_it_learns_from_the_mean_over_seeds(space_file):
    run = Run(space_file({**SEARCH, "search": {**SEARCH["search"], "num_samples": 30}})).play()
    for point in (0, 1):
        told = run.told(point)
        assert len(told) == 30
        records = [r for r in run.study.trials.values() if r.drawn.point == point and r.seed == 3]
        for (state, value), record in zip(told, records, strict=True):
            assert state == "COMPLETE"
            assert value == pytest.approx(value_of(record.parameters, 3.5))
        off = [abs(math.log10(record.parameters["optimizer.lr"]) + 1) for record in records]
        assert sum(off[10:]) / 20 < 0.8, "1 on average where draws are random"


@pytest.mark.parametrize("cut", [1, 2, 9, 30])
def test_a_search_that_was_cut_draws_what_an_uncut_one_draws(space, cut):
    whole = Run(space).play().study
    first = Run(space).play(cut).study
    again = Run(space, StudyRecord.model_validate_json(first.model_dump_json())).play()
    assert again.study.trials == whole.trials
    assert sum(state == "COMPLETE" for state, _ in again.told(0)) == 12


def test_several_at_a_time(space):
    run = Run(space).play(concurrency=5)
    assert len(run.study.trials) == 48
    assert {record.status for record in run.study.trials.values()} == {"finished"}


@pytest.mark.parametrize("swept", [False, True])
def test_what_is_drawn_after_another_evaluation_is_evaluated_as_the_others(space_file, swept):
    """Otherwise one table would hold figures that were measured in two ways."""
    grid = {"evaluation.batch_size": {"grid": [32, 64]}} if swept else {}
    space = space_file({**SEARCH, "space": {**SEARCH["space"], **grid}})
    study = Run(space).play(6).study
    assert all(record.evaluation == {} for record in study.trials.values())
    file = read_space(space, ["experiment.evaluation.similarity=dot"])
    settings = evaluation_blocks(study, with_drawn_trials(file, expand(file), study), file.space.kind)
    for key, record in study.trials.items():
        record.evaluation = settings[key]
    run = Run(space, stored(study)).play(20)
    assert len(run.study.trials) > len(study.trials)
    for key, record in run.study.trials.items():
        own = run.specs[key].experiment.evaluation.model_dump(mode="json")
        assert record.evaluation == {**own, "similarity": "dot"}
    if swept:
        assert {record.evaluation["batch_size"] for record in run.study.trials.values()} == {32, 64}


def test_failed_and_stopped_settings_are_told_as_such(space):
    run = Run(space).play(fails={0}, stops={2, 3})
    assert [state for state, _ in run.told(0)] == ["FAIL", "PRUNED"] + ["COMPLETE"] * 10
    assert [state for state, _ in run.told(1)] == ["COMPLETE", "PRUNED"] + ["COMPLETE"] * 10
    pruned = run.source._tuners[0]._study.get_trials()[1]
    assert list(pruned.intermediate_values) == [1]


def test_a_setting_that_diverged_is_told_as_the_worst_and_does_not_run_again(space):
    run = Run(space).play(9, diverges={0})
    assert run.told(0)[0] == ("PRUNED", None)
    assert "000" not in [key[:3] for key in run.study.unfinished()]
    again = Run(space, stored(run.study)).play()
    assert again.told(0)[0] == ("PRUNED", None)
    assert [again.study.trials[key].status for key in list(again.study.trials)[:2]] == 2 * ["failed"]
    assert again.study.trials == Run(space).play(diverges={0}).study.trials, "as without the cut"


def test_a_mean_over_some_of_the_seeds_is_not_told(space):
    run = Run(space)
    first, second = run.source.propose()
    run.study.trials[first].status, run.study.trials[first].metrics = "finished", {METRIC: 0.9}
    run.study.trials[second].status = "failed"
    run.source.tell(0)
    assert run.told(0) == [("FAIL", None)]


def test_a_repeated_draw_is_not_run_again(space_file):
    changes = {
        **SEARCH,
        "baseline": {},
        "space": {
            "sampler": {"choice": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]},
            "optimizer.lr": {"grid": [0.1]},
        },
        "search": {"name": "optuna", "num_samples": 6},
    }
    run = Run(space_file(changes)).play()
    assert len(run.study.settings()) == 2
    assert len(run.said) == 4
    assert "repeats setting" in run.said[0]
    assert [state for state, _ in run.told(0)].count("COMPLETE") == 6


CHOICES = {
    **SEARCH,
    "seeds": [0],
    "baseline": {},
    "space": {
        "sampler": {"choice": [{"name": "shuffle"}, *({"name": "spectral", "k": k} for k in (2, 4, 8))]},
        "optimizer.lr": {"choice": [0.01, 0.03, 0.1, 0.3]},
    },
}
"""So few settings that draws repeat them."""


def stored(study: StudyRecord) -> StudyRecord:
    return StudyRecord.model_validate_json(study.model_dump_json())


def test_draws_that_were_left_out_are_not_drawn_again(space_file):
    space = space_file(CHOICES)
    whole = Run(space).play()
    assert len(whole.said) == len(whole.study.left_out) == 12 - len(whole.study.trials) > 1
    assert whole.source.left == 0
    again = Run(space, stored(whole.study))
    assert again.source.left == 0, "a finished study has nothing left"
    assert again.told(0) == whole.told(0)
    assert again.play().study == whole.study
    for cut in range(1, len(whole.study.trials)):
        first = Run(space).play(cut).study
        same = {"created": first.created, "id": first.id}
        assert Run(space, stored(first)).play().study == whole.study.model_copy(update=same)


def test_a_record_without_its_left_out_draws_gives_no_slot_back(space_file):
    space = space_file(CHOICES)
    whole = Run(space).play()
    last = max(record.drawn.number for record in whole.study.trials.values())
    old = stored(whole.study.model_copy(update={"left_out": []}))
    assert Run(space, old).source.left == 11 - last


def test_left_out_draws_of_another_space_are_damage(space_file):
    study = Run(space_file(CHOICES)).play().study
    study.left_out[0].point = 3
    with pytest.raises(ConfigError, match="draw 0 that was left out of the study has no draw of this space"):
        Run(space_file(CHOICES), study)


def test_a_draw_that_repeats_a_running_setting_learns_what_that_reaches(space_file):
    for concurrency in (4, 12):
        run = Run(space_file(CHOICES)).play(concurrency=concurrency)
        assert run.said
        assert {state for state, _ in run.told(0)} == {"COMPLETE"}
        assert Run(space_file(CHOICES), stored(run.study)).told(0) == run.told(0)


def test_only_parameters_that_a_draw_has_are_drawn(space_file):
    changes = {
        **SEARCH,
        "seeds": [0],
        "space": {
            "sampler": {"choice": [{"name": "shuffle"}, {"name": "osgd", "k": 9}, {"name": "spectral"}]},
            "sampler.q": {"randint": [1, 9]},
            "optimizer.lr": {"uniform": [0.1, 0.2]},
        },
        "search": {"name": "optuna", "num_samples": 20},
    }
    run = Run(space_file(changes)).play()
    assert {record.sampler for record in run.study.trials.values()} == {"shuffle", "osgd", "spectral"}
    for record in run.study.trials.values():
        assert ("sampler.q" in record.parameters) == (record.sampler == "osgd") == ("sampler.q" in record.drawn.values)


def test_the_ends_of_the_domains_are_checked_beforehand(space_file):
    osgd = {"name": "osgd", "k": {"randint": [4, 9]}, "q": {"randint": [2, 6]}}
    changes = {**SEARCH, "space": {"sampler": {"grid": [{"name": "shuffle"}, osgd]}}}
    with pytest.raises(ConfigError, match=r"k: 4, q: 5.*q must be at most k, found q = 5 and k = 4"):
        expand(read_space(space_file(changes)))
    with pytest.raises(ConfigError, match="only grids, so there is nothing to draw"):
        expand(read_space(space_file({"search": {"name": "optuna", "num_samples": 3}})))
    with pytest.raises(ConfigError, match="baseline.sampler: found fixed, which is none of the settings"):
        expand(read_space(space_file({**SEARCH, "baseline": {"sampler": "fixed"}})))
    trials = expand(read_space(space_file(SEARCH)))
    assert (trials.specs, trials.total) == ((), 48)
    assert [spec.parameters["optimizer.lr"] for spec in trials.probes[:2]] == [0.001, 10.0]
    assert {spec.parameters["sampler"].get("k") for spec in trials.probes} == {None, 8, 14}


def test_another_search_is_another_study(space_file):
    def digest(**changes):
        file = read_space(space_file({**SEARCH, "search": {**SEARCH["search"], **changes}}))
        return space_digest(expand(file), file.space)

    assert digest() == digest()
    assert len({digest(), digest(seed=1), digest(num_samples=13), digest(n_startup_trials=5)}) == 4
