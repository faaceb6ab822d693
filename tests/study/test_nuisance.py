"""The choice of nuisance values from a study's record."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from mbcl.study.nuisance import choices, first_candidates
from mbcl.study.record import StudyRecord, TrialRecord

METRIC = "val/retrieval/mrr"
FINISHED, FAILED, DIVERGED, PENDING = "finished", "failed", "diverged", "pending"
RESULTS = st.lists(
    st.lists(
        st.tuples(st.sampled_from([FINISHED, FINISHED, FINISHED, FAILED, DIVERGED, PENDING]), st.integers(0, 3)),
        min_size=2,
        max_size=2,
    ),
    min_size=6,
    max_size=6,
)
"""Of 2 arms with 3 candidates each, on 2 seeds: how the trial ended, and its value."""


def study_of(results, mode: str) -> StudyRecord:
    trials = {}
    for setting, seeds in enumerate(results):
        for seed, (status, value) in enumerate(seeds):
            number = len(trials)
            trials[f"{number:03d}-aa"] = TrialRecord(
                ordinal=number,
                setting=setting,
                seed=100 + seed,
                sampler="shuffle" if setting < 3 else "spectral",
                objective="simclr",
                parameters={"sampler": {"name": "shuffle" if setting < 3 else "spectral"}},
                nuisance={"optimizer.lr": setting % 3},
                stage="tuning",
                arm=setting // 3,
                status=FAILED if status == DIVERGED else status,
                diverged=status == DIVERGED,
                metrics={METRIC: float(value)} if status == FINISHED else {},
            )
    fields = {"name": "s", "space_digest": "0", "metric": METRIC, "mode": mode, "created": "now", "trials": trials}
    return StudyRecord(nuisance=["optimizer.lr"], **fields)


@given(RESULTS, st.sampled_from(["max", "min"]))
def test_an_arm_has_a_choice_if_all_candidates_were_tried_and_it_is_the_best(results, mode):
    found = choices(study_of(results, mode))
    assert [choice.arm for choice in found] == [0, 1]
    for choice in found:
        own = results[3 * choice.arm : 3 * choice.arm + 3]
        statuses = {status for seeds in own for status, _ in seeds}
        means = {
            lr: statistics.fmean(value for _, value in seeds)
            for lr, seeds in enumerate(own)
            if all(status == FINISHED for status, _ in seeds)
        }
        assert len(choice.candidates) == 3
        assert (choice.chosen is None) == bool(choice.missing)
        if statuses & {FAILED, PENDING} or not means:
            assert choice.chosen is None
        else:
            assert choice.chosen is not None
            best = (max if mode == "max" else min)(means.values())
            assert choice.chosen.nuisance["optimizer.lr"] == next(lr for lr, mean in means.items() if mean == best)
            assert choice.chosen.value == best


@given(RESULTS, RESULTS)
def test_a_choice_that_has_trials_stays(results, later):
    record = study_of(later, "max")
    for arm, choice in enumerate(choices(study_of(results, "max"))):
        if choice.chosen is not None:
            number = len(record.trials)
            first = next(t for t in record.trials.values() if t.arm == arm)
            update = {
                "ordinal": number,
                "setting": 6 + arm,
                "stage": "confirmation",
                "nuisance": choice.chosen.nuisance,
            }
            record.trials[f"{number:03d}-aa"] = first.model_copy(update=update)
    for before, after in zip(choices(study_of(results, "max")), choices(record), strict=True):
        assert before.chosen is None or after.chosen.nuisance == before.chosen.nuisance


def test_a_study_without_nuisance_keys_has_no_choice():
    record = study_of([], "max").model_copy(update={"nuisance": []})
    assert choices(record) == []
    assert first_candidates(record) is record
