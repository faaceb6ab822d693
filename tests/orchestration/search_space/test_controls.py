"""The control of equal forward passes: which trials it adds, and with what the report compares."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine import runs
from hypothesis import given
from hypothesis import strategies as st

from mbcl.engine import Samples, forward_passes, load_data
from mbcl.errors import ConfigError
from mbcl.optim import cosine_lr
from mbcl.orchestration.results_folder.layout import new_study
from mbcl.orchestration.search_space.controls import Configured, equal_passes
from mbcl.orchestration.search_space.expansion import Trials, expand, space_digest
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.comparisons import compare
from mbcl.study.record import StudyRecord
from mbcl.study.settings import baselines, settings_of
from mbcl.study.statistics import summarise

from ..helpers import errors_in

SHUFFLE, SPECTRAL = {"name": "shuffle"}, {"name": "spectral", "k": 4}
OSGD = {"name": "osgd", "k": 4, "q": 1}
"""On 270 images in batches of 16: plans of 4 batches, for 16 steps an epoch 4 embedding passes."""
MRR = "retrieval/mrr"


def opened(path, *overrides: str) -> tuple[Trials, StudyRecord]:
    file = read_space(path, ["control=equal_passes", *overrides])
    trials = expand(file)
    return trials, new_study(file, trials, "study")


def finish(study: StudyRecord, value) -> StudyRecord:
    for trial in study.trials.values():
        trial.status, trial.metrics = "finished", {MRR: value(trial)}
    return study


def test_the_baseline_is_added_with_as_many_passes_for_every_setting_that_embeds(space_file):
    grid = {"grid": [SHUFFLE, SPECTRAL, OSGD, {"name": "fixed"}, {"name": "spectral", "k": 2}]}
    trials, study = opened(space_file({"space/sampler": grid, "seeds": [3, 5], "experiment/train/epochs": 10}))
    # An epoch trains on 256 images, which is 768 passes, and a plan embeds 270: 10 * (1 + 270 / 768) = 13.5 epochs,
    # and 10 * (1 + 4 * 270 / 768) = 24.06.
    added = [(spec.setting, spec.seed, spec.experiment.sampler.name, spec.parameters) for spec in trials.specs[10:]]
    block = {"sampler": {"name": "shuffle"}}
    assert added == [
        (number, seed, "shuffle", {**block, "train.epochs": epochs})
        for number, epochs in ((5, 14), (6, 24))
        for seed in (3, 5)
    ]
    assert [t.equal_passes for t in list(study.trials.values())[::2]] == [None, 5, 6, None, 5, None, None]
    assert [t.is_control for t in study.trials.values()] == 10 * [False] + 4 * [True]
    labels = [setting.label for setting in settings_of(study)]
    assert labels[5:] == ["shuffle, epochs=14", "shuffle, epochs=24"]
    assert trials.notes == (
        "control: shuffle is also trained for 14 epochs instead of 10, for as many forward passes as "
        "spectral (k=4) (10,380 instead of 7,680), spectral (k=2) (10,380 instead of 7,680)",
        "control: shuffle is also trained for 24 epochs instead of 10, for as many forward passes as osgd "
        "(k=4, q=1) (18,480 instead of 7,680)",
    )


def test_a_setting_is_compared_with_both_controls(space_file):
    _, study = opened(space_file({"seeds": list(range(8))}))
    gains = {0: 0.5, 1: 0.6, 2: 0.7}
    finish(study, lambda trial: gains[trial.setting] + trial.seed * (1 + trial.setting) / 1000)
    steps, passes = compare(study, MRR)
    assert (steps.setting, steps.baseline, steps.control) == (1, 0, "equal_steps")
    assert (passes.setting, passes.baseline, passes.control) == (1, 2, "equal_passes")
    assert steps.difference == pytest.approx(0.1 + 0.0035)
    assert passes.difference == pytest.approx(-0.1 - 0.0035)
    assert (steps.verdict, passes.verdict) == ("better", "worse")
    assert steps.comparisons == passes.comparisons == 2, "Holm's correction counts both"
    assert [setting.id for setting in baselines(study, settings_of(study))] == [0], "a control is no baseline"
    assert [summary.label for summary in summarise(study)] == ["shuffle", "spectral (k=4)", "shuffle, epochs=3"]


def test_pairs_of_a_second_swept_key_have_controls_of_their_own(space_file):
    changes = {"space/sampler": {"grid": [SHUFFLE, SPECTRAL]}, "space/train.batch_size": {"grid": [16, 32]}}
    trials, study = opened(space_file(changes))
    assert [t.equal_passes for t in study.trials.values()] == [None, None, 4, 5, None, None]
    assert [spec.experiment.train.batch_size for spec in trials.specs] == [16, 32, 16, 32, 16, 32]


def test_a_setting_of_the_space_may_be_the_control(space_file):
    changes = {"experiment/train/epochs": 1, "space/train.epochs": {"grid": [1, 2]}}
    _, study = opened(space_file(changes))
    # The control of spectral with one epoch is shuffle with two, which the space has; that of two epochs is added.
    assert [t.equal_passes for t in study.trials.values()] == [None, None, 1, 4, None]
    finish(study, lambda trial: 0.5)
    pairs = [(c.setting, c.baseline, c.control) for c in compare(study, MRR)]
    assert pairs == [(2, 0, "equal_steps"), (2, 1, "equal_passes"), (3, 1, "equal_steps"), (3, 4, "equal_passes")]


@pytest.mark.parametrize("changes", [{"embeddings": {"source": "cached"}}, {"planner": {"warmup_epochs": 2}}])
def test_few_embeddings_cost_few_epochs_or_none(space_file, changes):
    path = space_file({f"experiment/{key}": value for key, value in changes.items()})
    trials, _ = opened(path)
    cached = "embeddings" in changes
    assert trials.total == (3 if cached else 2), "cached embeddings cost one pass in all"
    assert cached or trials.notes[0].startswith("control: equal_passes adds nothing")


def test_a_setting_within_one_per_cent_needs_no_control(space_file):
    path = space_file({"experiment/embeddings": {"source": "cached"}, "experiment/train/epochs": 40})
    trials, _ = opened(path)  # 40 * 768 + 270 passes instead of 40 * 768
    assert trials.total == 2
    assert trials.notes == (
        "control: equal_passes adds nothing: no setting makes over 1 % more forward passes than its baseline",
    )


def test_the_control_belongs_to_the_study(space_file):
    path = space_file()
    file, other = read_space(path), read_space(path, ["control=equal_passes"])
    assert space_digest(expand(file), file.space) != space_digest(expand(other), other.space)


BAD = [
    (["control=equal_steps"], "control: Input should be 'equal_passes', found 'equal_steps'"),
    (["control=equal_passes", "baseline={}"], "control: equal_passes needs a baseline"),
    (["control=equal_passes", "experiment.data.name=cifar10"], "control: equal_passes counts the training images: "),
    (["control=equal_passes", "experiment.train.batch_size=280"], "experiment.train.batch_size: 280 is above the 270"),
    (
        ["control=equal_passes", "search.name=optuna", "space.optimizer.lr.uniform=[0.1, 0.2]"],
        "control: equal_passes needs settings that are known before the first trial",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), BAD)
def test_bad_controls_are_refused_with_exit_code_2(space_file, tmp_path, capsys, overrides, text):
    pytest.importorskip("ray")
    import run_ray

    line = ["--space", str(space_file()), "--results-dir", str(tmp_path / "results"), "--dry-run"]
    assert run_ray.main([*line, *(part for override in overrides for part in ("--set", override))]) == 2
    error = errors_in(capsys.readouterr().err)
    assert text in error
    assert error.count("\n") == 1


def test_a_dry_run_shows_the_added_trials_and_why(space_file, tmp_path, capsys):
    pytest.importorskip("ray")
    import run_ray

    options = ["--results-dir", str(tmp_path / "results"), "--dry-run", "--set", "control=equal_passes"]
    assert run_ray.main(["--space", str(space_file()), *options]) == 0
    output = capsys.readouterr().out
    assert "seed 0  sampler = {name: shuffle}, train.epochs = 3" in output
    assert "note: control: shuffle is also trained for 3 epochs instead of 2" in output
    assert "\n3 trials" in output


def test_a_control_of_a_synthetic_study_is_refused(space_file):
    path = space_file({"experiment": {"synthetic": {}}})
    with pytest.raises(ConfigError, match="control: equal_passes is of pretrainings"):
        read_space(path, ["control=equal_passes"])


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
@given(
    st.sampled_from([SPECTRAL, OSGD]),
    st.integers(1, 40),
    st.sampled_from([0, 1, 2.5, 50]),
    st.fixed_dictionaries({"overlap": st.sampled_from([0, 1]), "every": st.integers(1, 3)}),
    st.sampled_from(["round", "epoch"]),
    st.integers(64, 4000),
    st.floats(0, 1),
)
def test_the_control_has_the_fewest_epochs_with_as_many_passes_and_the_same_schedule(
    sampler, epochs, warmup_epochs, planner, refresh, num_train, progress
):
    def of(block):
        return runs.experiment(
            block,
            train={"epochs": epochs, "batch_size": 16},
            schedule={"warmup_epochs": warmup_epochs},
            planner=planner,
            embeddings={"refresh": refresh},
        )

    ours, theirs = of(SHUFFLE), of(sampler)
    settings = [Configured({"sampler": dict(b)}, e, arm=b["name"]) for b, e in ((SHUFFLE, ours), (sampler, theirs))]
    found = equal_passes(settings, {"sampler": "shuffle"}, lambda _: [Samples(num_train)])
    (added,) = found.settings
    control = added.experiment
    assert found.control_of == {1: 2}
    passes, longer = forward_passes(theirs, Samples(num_train)), control.train.epochs
    assert added.parameters["train.epochs"] == longer
    one = forward_passes(ours, Samples(num_train)) // epochs
    fewest = -(-passes // one)
    assert longer == (fewest - 1 if passes % one and one * (fewest - 1) >= 0.99 * passes else fewest)
    rates = [
        cosine_lr(progress * e.train.epochs, 1.0, e.schedule.warmup_epochs, e.train.epochs) for e in (ours, control)
    ]
    assert math.isclose(*rates, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
def test_the_control_is_counted_on_its_own_images():
    """A baseline may name a key of the data, and have another number of images than the setting."""

    def of(block, size):
        data = {"name": "digits", "max_samples": size}
        return runs.experiment(block, data=data, train={"epochs": 4, "batch_size": 16})

    def samples_of(experiment):
        return [Samples(experiment.data.max_samples)]

    ours, theirs = of(SHUFFLE, 200), of(SPECTRAL, 400)
    settings = [
        Configured({"sampler": dict(block), "data.max_samples": e.data.max_samples}, e, arm=block["name"])
        for block, e in ((SHUFFLE, ours), (SPECTRAL, theirs))
    ]
    baseline = {"sampler": "shuffle", "data.max_samples": 200}
    control = equal_passes(settings, baseline, samples_of).settings[0].experiment
    assert control.data.max_samples == 200
    assert forward_passes(theirs, Samples(400)) == 4 * (3 * 400 + 400)
    assert control.train.epochs == 11, "6,400 passes in epochs of 3 * 192"


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
def test_passes_are_those_of_all_splits_where_they_have_unequal_numbers_of_samples():
    """An epoch of 64 batches has 4 rounds of 16, one of 65 a fifth round of one; each has an embedding pass."""

    def epochs(*batches):
        ours, theirs = (runs.experiment(block, train={"epochs": 51, "batch_size": 16}) for block in (SHUFFLE, OSGD))
        settings = [Configured({"sampler": dict(b)}, e, arm=b["name"]) for b, e in ((SHUFFLE, ours), (OSGD, theirs))]
        samples = [Samples(16 * number) for number in batches]
        return equal_passes(settings, {"sampler": "shuffle"}, lambda _: samples).settings[0].experiment.train.epochs

    # 51 (1 + 4 / 3) epochs, 51 (1 + 5 / 3), and 51 (1 + (64 * 4 + 2 * 65 * 5) / 3 / (64 + 2 * 65)) = 130.4.
    assert [epochs(64), epochs(65), epochs(64, 65, 65)] == [119, 136, 130]


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
@pytest.mark.parametrize(
    ("epochs", "samples", "expected"),
    [
        (6, 16 * 64, 8),  # 8 exactly
        (6, 16 * 64 + 15, 8),  # 8.03: a ninth epoch is saved
        (100, 16 * 64, 133),  # 133.33
        (10, 270, 14),  # 13.52
    ],
)
def test_a_control_lacks_up_to_one_per_cent_where_that_saves_an_epoch(epochs, samples, expected):
    ours, theirs = (runs.experiment(block, train={"epochs": epochs, "batch_size": 16}) for block in (SHUFFLE, SPECTRAL))
    settings = [Configured({"sampler": dict(b)}, e, arm=b["name"]) for b, e in ((SHUFFLE, ours), (SPECTRAL, theirs))]
    found = equal_passes(settings, {"sampler": "shuffle"}, lambda _: [Samples(samples)])
    assert found.settings[0].experiment.train.epochs == expected


def test_the_control_of_grouped_pairs_counts_the_split_of_every_seed(space_file, tmp_path):
    """Groups of unequal size: the seeds train on unequal numbers of pairs."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), generator.integers(1, 30, size=40))
    arrays = {side: generator.normal(size=(len(groups), 8)) for side in ("x1", "x2")}
    np.savez(tmp_path / "made.npz", groups=groups, **arrays)
    path = space_file(
        {
            "experiment/data": {"name": "pairs", "dir": str(tmp_path / "made.npz")},
            "experiment/encoder": {"name": "pair_mlp", "width": 16, "dim": 8},
            "experiment/projector": {"layers": 0},
            "experiment/objective": {"name": "clip", "temperature": 0.2},
            "experiment/train": {"epochs": 20, "batch_size": 16},
            "space/sampler": {"grid": [SHUFFLE, OSGD]},
            "seeds": list(range(10)),
        }
    )
    trials, _ = opened(path)
    passes = dict.fromkeys(range(3), 0)
    numbers = set()
    for spec in trials.specs:
        samples = load_data(spec.experiment.data, seed=spec.seed).samples
        numbers.add(samples.number)
        passes[spec.setting] += forward_passes(spec.experiment, samples)
    assert len(numbers) > 1
    one_epoch = passes[2] / trials.specs[-1].experiment.train.epochs
    assert passes[2] - one_epoch < passes[1]
    assert passes[2] >= 0.99 * passes[1]
    fewer, _ = opened(path, "seeds=[3, 4]")
    assert fewer.specs[-1].experiment.train.epochs == trials.specs[-1].experiment.train.epochs, "as extended"
