"""Nuisance keys: equally many candidates for every setting, and fresh seeds for what is chosen."""

from __future__ import annotations

import pytest

from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder.extension import digest_of
from mbcl.orchestration.results_folder.layout import create, load, new_study
from mbcl.orchestration.scheduling.confirmation_source import ConfirmationSource
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.search_space.confirmation import confirmation
from mbcl.orchestration.search_space.describe import counts, plan_lines, power_lines
from mbcl.orchestration.search_space.expansion import expand, space_digest
from mbcl.orchestration.search_space.replay import with_drawn_trials
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.comparisons import compare
from mbcl.study.nuisance import choices, describe_choices
from mbcl.study.record import StudyRecord, write_study
from mbcl.study.settings import settings_of
from mbcl.study.statistics import summarise

from ..helpers import errors_in

VALIDATION, MRR = "val/retrieval/mrr", "retrieval/mrr"
TUNED = {
    "seeds": [0, 1, 2],
    "nuisance": {"keys": ["objective.temperature"], "seeds": [100, 101]},
    "space/objective.temperature": {"grid": [0.1, 0.2, 0.5]},
    "space/sampler.temperature": {"same_as": "objective.temperature"},
}
BEST = {"shuffle": 0.1, "spectral": 0.5}
"""The temperature that :class:`Run` makes the best of each sampler on validation."""


class Run:
    """A study that is played through, some trials at a time, from a record on."""

    def __init__(self, path, study: StudyRecord | None = None, overrides=()) -> None:
        self.file = read_space(path, list(overrides))
        self.trials = expand(self.file)
        self.study = study or new_study(self.file, self.trials, "test")
        self.specs = with_drawn_trials(self.file, self.trials, self.study).by_id
        assert set(self.specs) == set(self.study.trials), "a record gives its trials' names again"
        self.source = ConfirmationSource(self.file.space, self.study, self.trials, added=self.add)

    def add(self, specs) -> None:
        self.specs |= {spec.trial_id: spec for spec in specs}

    def play(self, most: int = 10**6, concurrency: int = 2, *, fails=(), diverges=()) -> Run:
        """Run ``most`` trials; those of the named nuisance values and samplers fail."""
        queue = TrialQueue(self.study, self.study.unfinished(), concurrency=concurrency, source=self.source)
        running: list[str] = []
        while most > 0:
            while (key := queue.next_trial()) is not None:
                running.append(key)
            if not running:
                assert queue.exhausted
                break
            assert self.source.left == 0 or not queue.exhausted
            key, most = running.pop(0), most - 1
            record = self.study.trials[key]
            temperature = self.specs[key].experiment.objective["temperature"]
            case = (record.sampler, temperature)
            record.status = "failed" if record.stage == "tuning" and case in (*fails, *diverges) else "finished"
            record.diverged = record.status == "failed" and case in diverges
            if record.status == "finished":
                value = 0.9 - abs(BEST[record.sampler] - temperature) + record.seed / 1e4
                record.metrics = {VALIDATION: value}
                if record.stage == "confirmation":
                    record.metrics[MRR] = value - 0.2 * (record.sampler == "shuffle")
            queue.on_trial_end(key)
        return self


def stages(study: StudyRecord) -> list[tuple[str, str, int, float]]:
    return [(t.stage, t.sampler, t.seed, t.nuisance["objective.temperature"]) for t in study.ordered().values()]


def test_every_setting_takes_its_own_best_values_and_other_seeds_measure_them(space_file):
    run = Run(space_file(TUNED)).play()
    tuning = [("tuning", s, seed, t) for s in BEST for t in (0.1, 0.2, 0.5) for seed in (100, 101)]
    confirmed = [("confirmation", s, seed, BEST[s]) for s in BEST for seed in (0, 1, 2)]
    assert stages(run.study) == tuning + confirmed
    assert run.trials.total == len(run.study.trials) == 18
    last = next(iter(reversed(run.study.ordered())))
    assert run.specs[last].experiment.sampler["temperature"] == 0.5, "a tied key follows"
    assert describe_choices(run.study) == [
        f"shuffle: temperature=0.1, the best of 3 candidates by {VALIDATION} (0.9101)",
        f"spectral (k=4): temperature=0.5, the best of 3 candidates by {VALIDATION} (0.9101)",
    ]


def test_only_confirmed_settings_are_compared_at_their_own_best_values(space_file):
    run = Run(space_file({**TUNED, "seeds": list(range(8))})).play()
    (comparison,) = compare(run.study, MRR)
    assert (comparison.label, comparison.baseline_label) == ("spectral (k=4)", "shuffle")
    assert comparison.difference == pytest.approx(0.2)
    assert (comparison.n, comparison.candidates, comparison.baseline_candidates) == (8, 3, 3)
    assert comparison.verdict == "better"
    summaries = summarise(run.study)
    assert [s.label for s in summaries if s.stage != "tuning"] == ["shuffle", "spectral (k=4)"]
    assert all(s.metrics[VALIDATION].ci_low is None for s in summaries if s.stage == "tuning")
    assert all(s.metrics[VALIDATION].ci_low is not None for s in summaries if s.stage != "tuning")
    labels = [setting.label for setting in settings_of(run.study)]
    assert labels[0] == "tuning shuffle, temperature=0.1"
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 11, 12, 13, 17, 18])
def test_a_study_that_is_cut_anywhere_goes_on_to_the_same_trials(space_file, tmp_path, cut):
    path = space_file(TUNED)
    whole = Run(path).play(concurrency=1)
    first = Run(path).play(most=cut)
    store = LocalStore(tmp_path / "study")
    create(store, first.file, first.trials, first.study)
    for trial in first.study.trials.values():
        if trial.status == "running":
            trial.status = "pending"
    write_study(store, first.study)
    study, trials = load(store, first.file, expand(first.file))
    assert set(trials.by_id) == set(study.trials)
    resumed = Run(path, study).play()
    assert list(resumed.study.ordered()) == list(whole.study.ordered())
    assert stages(resumed.study) == stages(whole.study)


def test_a_failed_candidate_leaves_its_setting_without_a_choice_until_it_is_repeated(space_file):
    path = space_file(TUNED)
    run = Run(path).play(fails=[("spectral", 0.2)])
    assert {t.sampler for t in run.study.trials.values() if t.stage == "confirmation"} == {"shuffle"}
    assert run.source.left == 3, "the exit code counts them as missing"
    assert describe_choices(run.study)[1].startswith("spectral (k=4): nothing is chosen: 2 tuning trials failed")
    assert compare(run.study, MRR) == []
    resumed = Run(path, run.study).play()
    assert resumed.source.left == 0
    assert [c.n for c in compare(resumed.study, MRR)] == [3]


def test_a_candidate_that_diverged_was_tried_and_is_not_chosen(space_file):
    run = Run(space_file(TUNED)).play(diverges=[("spectral", 0.5)])
    chosen = choices(run.study)[1]
    assert chosen.chosen is not None
    assert chosen.chosen.nuisance["objective.temperature"] == 0.2
    assert "the best of 3 candidates, of which 1 diverged, by" in describe_choices(run.study)[1]
    (comparison,) = compare(run.study, MRR)
    assert (comparison.candidates, comparison.baseline_candidates, comparison.n) == (3, 3, 3)
    everything = Run(space_file(TUNED)).play(diverges=[("spectral", t) for t in (0.1, 0.2, 0.5)])
    assert choices(everything.study)[1].missing == "every candidate diverged"
    for played in (run, everything):
        assert not played.study.unfinished(), "--resume runs no candidate again"
        assert played.source.left == 0, "and nothing is left to be added"
    again = Run(space_file(TUNED), everything.study).play()
    assert {t.sampler for t in again.study.trials.values() if t.stage == "confirmation"} == {"shuffle"}


def test_a_measured_trial_that_diverged_is_a_failure(space_file):
    run = Run(space_file(TUNED)).play()
    last = next(iter(reversed(run.study.ordered().values())))
    last.status, last.diverged = "failed", True
    assert run.study.unfinished() == [next(iter(reversed(run.study.ordered())))]


def test_a_choice_that_was_measured_stays_when_a_repeated_trial_would_change_it(space_file):
    path = space_file(TUNED)
    run = Run(path).play(diverges=[("spectral", 0.5)])
    resumed = Run(path, run.study).play()
    assert not resumed.study.unfinished()
    assert choices(resumed.study)[1].chosen.nuisance["objective.temperature"] == 0.2
    assert len(resumed.study.trials) == 18


def test_controls_are_tuned_and_confirmed_like_other_settings(space_file):
    run = Run(space_file(TUNED), overrides=["control=equal_passes"])
    assert run.trials.total == 3 * (3 * 2 + 3)
    assert len(run.trials.notes) == 1
    assert "corrected for 2 comparisons" in next(power_lines(run.file.space, run.study))
    run.play()
    found = {(c.label, c.baseline_label, c.control, c.n) for c in compare(run.study, MRR)}
    assert found == {
        ("spectral (k=4)", "shuffle", "equal_steps", 3),
        ("spectral (k=4)", "shuffle, epochs=3", "equal_passes", 3),
    }  # fmt: skip


def test_random_draws_are_the_same_candidates_for_every_setting(space_file):
    changes = {**TUNED, "space/objective.temperature": {"loguniform": [0.05, 0.5]}, "search": {"num_samples": 4}}
    trials = expand(read_space(space_file(changes)))
    drawn = {
        s: [t.nuisance["objective.temperature"] for t in trials.specs if t.experiment.sampler.name == s] for s in BEST
    }
    assert drawn["shuffle"] == drawn["spectral"]
    assert len(set(drawn["shuffle"])) == 4


def test_a_dry_run_lists_the_candidates_and_says_what_follows(space_file, tmp_path, capsys):
    pytest.importorskip("ray")
    import run_ray

    draws = {"space/objective.temperature": {"loguniform": [0.05, 0.5]}, "search": {"num_samples": 2}}
    path = space_file({**TUNED, **draws})
    assert run_ray.main(["--space", str(path), "--results-dir", str(tmp_path / "results"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "search: random draws 2 settings for each of 2 points of the grids; 4 candidates x 2 seeds" in lines
    listed = [line for line in lines if "  seed 100  " in line or "  seed 101  " in line]
    assert len(listed) == 8
    assert all("objective.temperature = 0." in line for line in listed)
    assert lines[-1].startswith(
        "14 trials: 4 candidates x 2 seeds to choose objective.temperature, then 2 settings x 3 seeds; 8 are listed"
    )


def test_a_tie_in_a_block_does_not_make_an_arm_of_every_candidate(space_file):
    block = {"name": "spectral", "k": 4, "temperature": {"same_as": "objective.temperature"}}
    changes = {key: value for key, value in TUNED.items() if key != "space/sampler.temperature"}
    run = Run(space_file({**changes, "space/sampler": {"grid": [{"name": "shuffle"}, block]}})).play()
    assert [choice.label for choice in choices(run.study)] == ["shuffle", "spectral (k=4)"]
    assert [c.n for c in compare(run.study, MRR)] == [3]


@pytest.mark.parametrize(
    ("key", "values"), [("data.dir", ["/a", "/b"]), ("data.apart", ["a.npy", "b.npy"]), ("train.threads", [1, 2])]
)
def test_candidates_that_differ_in_a_place_or_threads_have_names_of_their_own(space_file, key, values):
    """An experiment's digest passes over places and threads, but an extended study knows a trial by its digest."""
    tuned = {"seeds": [0], "nuisance": {"keys": [key], "seeds": [100]}, f"space/{key}": {"grid": values}}
    file = read_space(space_file(tuned))
    trials = expand(file)
    assert len({digest_of(spec.trial_id) for spec in trials.specs}) == len(trials.specs) == 4
    arms = {spec.arm: [each for each in trials.specs if each.arm == spec.arm] for spec in trials.specs}
    confirmed = [confirmation(file.space, trials, spec.setting)[0] for spec in arms[0]]
    assert [spec.nuisance for spec in confirmed] == [{key: value} for value in values]
    assert len({digest_of(spec.trial_id) for spec in confirmed}) == 2


def test_words_and_identity(space_file):
    file = read_space(space_file(TUNED))
    trials = expand(file)
    assert counts(file.space, trials) == (
        "18 trials: 6 candidates x 2 seeds to choose objective.temperature, then 2 settings x 3 seeds"
    )
    (line,) = plan_lines(file.space)
    assert line.endswith("over seeds 100, 101 gives its objective.temperature; seeds 0, 1, 2 measure it")
    few, _ = power_lines(file.space, new_study(file, trials, "study"))
    assert few.startswith("3 pairs of seeds cannot show any difference at 0.05")
    other = read_space(file.path, ["seeds=[0, 1]"])
    assert space_digest(expand(other), other.space) != space_digest(trials, file.space)


BAD = [
    ({"nuisance": {"keys": [], "seeds": [1]}}, "nuisance.keys: "),
    ({"nuisance": {"keys": ["objective.temperature"], "seeds": []}}, "nuisance.seeds: "),
    ({"nuisance": {"keys": ["objective.temperatures"], "seeds": [9]}}, "did you mean 'objective.temperature'?"),
    ({"nuisance": {"keys": ["objective.temperature"] * 2, "seeds": [9]}}, "every key may be given once"),
    ({"nuisance": {"keys": ["objective.temperature"], "seeds": [9, 9]}}, "nuisance.seeds: found [9, 9]"),
    ({"nuisance": {"keys": ["objective.temperature"], "seeds": [9, 1]}}, "nuisance.seeds: found 1, which is among"),
    (
        {"nuisance": {"keys": ["objective.temperature"], "seed": [9]}},
        "nuisance.seed: unknown key; did you mean 'seeds'? known: keys, seeds",
    ),
    ({"space/objective.temperature": {"grid": [0.1]}}, "2 settings have one candidate each, so there is nothing to"),
    (
        {"nuisance": {"keys": ["sampler.k"], "seeds": [9]}, "space/sampler.k": {"grid": [2, 4]}},
        "unequal numbers of candidates",
    ),
    ({"baseline": {"objective.temperature": 0.1}}, "baseline.objective.temperature: is a nuisance key"),
    ({"scheduler": {"name": "asha"}}, "scheduler.name: found asha; allowed with nuisance: fifo"),
    ({"search": {"name": "optuna"}, "space/optimizer.lr": {"uniform": [0.1, 0.2]}}, "allowed with nuisance: random"),
    (
        {"search": {"metric": "plan/coverage", "mode": "max"}, "space/sampler": {"grid": [{"name": "spectral"}]}},
        "search",
    ),
    ({"space/optimizer.lr": {"uniform": [0.1, 0.2]}}, "nuisance.keys: optimizer.lr is drawn, but no nuisance key"),
]


@pytest.mark.parametrize(("changes", "text"), BAD)
def test_bad_nuisance_blocks_are_refused_with_exit_code_2(space_file, tmp_path, capsys, changes, text):
    pytest.importorskip("ray")
    import run_ray

    path = space_file({**TUNED, **changes})
    assert run_ray.main(["--space", str(path), "--results-dir", str(tmp_path / "results"), "--dry-run"]) == 2
    error = errors_in(capsys.readouterr().err)
    assert error.startswith("error: ")
    assert text in error
    assert error.count("\n") == 1


def test_a_record_of_another_choice_is_refused(space_file):
    run = Run(space_file(TUNED)).play()
    for trial in run.study.trials.values():
        if trial.stage == "confirmation":
            trial.nuisance = {"objective.temperature": 0.3}
    with pytest.raises(ConfigError, match="confirms no candidate of this space; study.json is damaged"):
        with_drawn_trials(run.file, run.trials, run.study)
