from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder.layout import create, load, new_study
from mbcl.orchestration.scheduling.early_stopping import build_early_stopping
from mbcl.orchestration.search_space import expansion as trials
from mbcl.orchestration.search_space.describe import plan_lines
from mbcl.orchestration.search_space.expansion import expand, space_digest
from mbcl.orchestration.search_space.schema import check_name, read_space
from mbcl.study.settings import baselines, settings_of


def trials_of(file, *overrides):
    return expand(read_space(file, list(overrides)))


BROKEN = [
    ({"spase": {}}, "spase: unknown key; did you mean 'space'?"),
    ({"space": None}, "space: this key is missing"),
    ({"space": {}}, "space: it is empty"),
    ({"space": []}, "space: Input should be a valid dictionary, found []"),
    ({"space/sampler": {"gird": [1]}}, "space.sampler: unknown domain 'gird'; did you mean 'grid'?"),
    ({"space/sampler": {"grid": []}}, "space.sampler: grid: expected a list of at least one value, found []"),
    ({"space/sampler": [1]}, "one domain (grid, choice, uniform, loguniform, randint, same_as) such as"),
    ({"space/sampler": {"uniform": [0, 1]}}, "sampler: expected a block with a name, such as {name: ...}, found 0"),
    ({"space/optimizer.lr": {"uniform": 0.1}}, "space.optimizer.lr: uniform: expected [a, b] with numbers, found 0.1"),
    ({"space/optimizer.lr": {"uniform": [0.1]}}, "uniform: expected [a, b] with numbers, found [0.1]"),
    ({"space/optimizer.lr": {"uniform": [True, 2]}}, "uniform: expected [a, b] with numbers, found [True, 2]"),
    ({"space/optimizer.lr": {"uniform": [0, float("inf")]}}, "uniform: expected [a, b] with numbers, found [0, inf]"),
    ({"space/optimizer.lr": {"uniform": [0.2, 0.1]}}, "uniform: expected [a, b] with a below b, found [0.2, 0.1]"),
    ({"space/optimizer.lr": {"loguniform": [0, 0.1]}}, "loguniform: expected [a, b] with a above 0, found [0, 0.1]"),
    ({"space/train.epochs": {"randint": [1, 2.5]}}, "randint: expected [a, b] with whole numbers, found [1, 2.5]"),
    ({"space/train.epochs": {"randint": [3, 3]}}, "randint: expected [a, b] with a below b, found [3, 3]"),
    ({"space/train.epochs": {"uniform": [2, 5]}}, "train.epochs: Input should be a valid integer"),
    ({"space/optimizer.lr": {"lognormal": [0, 1]}}, "unknown domain 'lognormal'; did you mean 'loguniform'?"),
    (
        {"space/sampler": {"choice": [{"name": "spectral", "k": {"grid": [2, 4]}}]}},
        "space.sampler: choice: found a grid inside it, which cannot be tried whole in one draw; allowed: choice",
    ),
    (
        {"space/sampler": {"grid": [{"name": "spectral", "k": {"randint": [4, 2]}}]}},
        "space.sampler: randint: expected [a, b] with a below b",
    ),
    (
        {"space/sampler.kk": {"grid": [1, 2]}},
        "space.sampler.kk: none of shuffle, spectral has this parameter; did you mean 'k'?",
    ),
    (
        {"space/sampler": {"grid": [{"name": "osgd", "k": {"randint": [2, 9]}, "q": 9}]}},
        "q must be at most k, found q = 9",
    ),
    (
        {"space": {"sampler": {"grid": [{"name": "spectral", "k": {"randint": [2, 9]}}]}, "sampler.k": {"grid": [4]}}},
        "space.sampler.k: a block of space.sampler has a domain for k, too; give it once",
    ),
    ({"space/sampler.name": {"grid": ["shuffle", "spektral"]}, "space/sampler": None}, "unknown sampler 'spektral'"),
    ({"space/smapler": {"grid": [1]}}, "space.smapler: unknown key 'smapler'; did you mean 'sampler'?"),
    ({"space/train.epohcs": {"grid": [1]}}, "space.train.epohcs: unknown key 'epohcs'; did you mean 'epochs'?"),
    ({"space/seed": {"grid": [1]}}, "seed: seeds are replicates of every setting"),
    ({"experiment/seed": 1}, "seed: seeds are replicates of every setting"),
    ({"experiment/train/epohcs": 1}, "experiment.train.epohcs: unknown key; did you mean 'epochs'?"),
    ({"experiment/train/epochs": "two"}, "experiment.train.epochs: Input should be a valid integer, found 'two'"),
    ({"experiment/train/epochs": 0}, "experiment.train.epochs: Input should be greater than or equal to 1, found 0"),
    (
        {"experiment/sampler": {"name": "spectrum"}},
        "experiment.sampler: unknown sampler 'spectrum'; did you mean 'spectral'?",
    ),
    (
        {"experiment/objective": {"name": "simclr2"}},
        "experiment.objective: unknown objective 'simclr2'; did you mean 'simclr'?",
    ),
    ({"experiment/data/name": "digitz"}, "did you mean 'digits'?"),
    ({"space/sampler": {"grid": [{"name": "osgd", "k": 2, "q": 5}]}}, "q must be at most k, found q = 5 and k = 2"),
    ({"space/sampler": {"grid": [{"name": "osgd", "q": 5, "kk": 2}]}}, "sampler.kk: unknown key; did you mean 'k'?"),
    ({"seeds": []}, "seeds: "),
    ({"seeds": [0, 0]}, "seeds: found [0, 0], every seed may be given once"),
    ({"seeds": ["a"]}, "seeds.0: Input should be a valid integer, found 'a'"),
    (
        {"baseline": {"sampler": "fixed"}},
        "baseline.sampler: found fixed, which is none of the settings: {name: shuffle}",
    ),
    ({"baseline": {"samplr": None}}, "baseline.samplr: unknown key 'samplr'; did you mean 'sampler'?"),
    ({"baseline": {"nonsense.key": None}}, "baseline.nonsense.key: unknown key 'nonsense'; known: "),
    ({"baseline": {"sampler.kk": None}}, "baseline.sampler.kk: found null, which is none of the settings"),
    ({"baseline": {"sampler.name": "fixt"}}, "baseline: unknown sampler 'fixt'; did you mean 'fixed'?"),
    (
        {"baseline": {"sampler.k": 40}, "space": {"sampler.name": {"grid": ["shuffle", "spectral"]}}},
        "baseline: found {sampler.k: 40}, which settings have by what is not swept; allowed: swept keys",
    ),
    ({"baseline": {"sampler": "fixt"}}, "baseline: unknown sampler 'fixt'; did you mean 'fixed'?"),
    ({"scheduler": {"name": "ahsa"}}, "scheduler: unknown scheduler 'ahsa'; did you mean 'asha'?"),
    ({"scheduler": {"name": "pbt"}}, "scheduler: unknown scheduler 'pbt'; known: asha, fifo, median"),
    ({"scheduler": ["asha"]}, "scheduler: expected a block with a name"),
    ({"scheduler": {"name": "fifo", "max_t": 3}}, "scheduler.max_t: unknown key; there is none that could be given"),
    (
        {"scheduler": {"name": "asha", "reduction_facto": 3}},
        "scheduler.reduction_facto: unknown key; did you mean 'reduction_factor'?",
    ),
    ({"scheduler": {"name": "asha", "metric": "x"}}, "scheduler.metric: unknown key; known: grace_period, max_t"),
    ({"scheduler": {"name": "asha", "grace_period": 0}}, "scheduler: grace_period: found 0, allowed: a whole number"),
    ({"scheduler": {"name": "asha", "grace_period": 1.5}}, "scheduler.grace_period: Input should be a valid integer"),
    (
        {"scheduler": {"name": "asha", "reduction_factor": 1}},
        "reduction_factor: found 1.0, allowed: a number from 1.01",
    ),
    ({"scheduler": {"name": "asha", "reduction_factor": 1.0000001}}, "reduction_factor: found 1.0000001, allowed: a"),
    ({"scheduler": {"name": "asha", "reduction_factor": 1e200}}, "reduction_factor: found 1e+200, allowed: a number"),
    ({"scheduler": {"name": "asha", "grace_period": 2**31 + 1}}, "and at most 2147483648"),
    ({"scheduler": {"name": "asha", "max_t": 2**40}}, "max_t: found 1099511627776, allowed: null or at least"),
    ({"scheduler": {"name": "asha", "brackets": 1}}, "scheduler.brackets: unknown key; known: grace_period, max_t"),
    ({"space/train.epochs": {"randint": [0, 10**30]}}, "randint: expected [a, b] within -9.0072e+15 and 9.0072e+15"),
    ({"space/optimizer.lr": {"uniform": [0, 10**400]}}, "uniform: expected [a, b] within -1e+100 and 1e+100, found an"),
    ({"space/optimizer.lr": {"uniform": [-1.7e308, 1.7e308]}}, "uniform: expected [a, b] within -1e+100 and 1e+100"),
    ({"scheduler": {"name": "asha", "grace_period": 3, "max_t": 2}}, "scheduler: max_t: found 2, allowed: null or at"),
    ({"scheduler": {"name": "median", "min_samples_required": 0}}, "scheduler: min_samples_required: found 0"),
    ({"scheduler": {"name": "median", "hard_stop": False}}, "scheduler.hard_stop: unknown key; known: grace_period"),
    ({"search": {"name": "hyperopt"}}, "search.name: Input should be 'random' or 'optuna', found 'hyperopt'"),
    ({"search": {"num_sample": 3}}, "search.num_sample: unknown key; did you mean 'num_samples'?"),
    ({"search": {"n_startup_trials": 3}}, "search.n_startup_trials: found 3, which only name: optuna has"),
    ({"search": {"name": "optuna", "n_startup": 3}}, "search.n_startup: unknown key; did you mean 'n_startup_trials'?"),
    ({"search": {"name": "optuna", "group": True}}, "search.group: found true, which needs multivariate: true"),
    ({"search": {"metric": "train/loss"}}, "search.metric: train/loss is what sampler change"),
    (
        {"search": {"metric": "val/knn/top1"}},
        "search.metric: val/knn/top1 is not measured; it needs experiment.evaluation.validation_metrics: [knn]",
    ),
    (
        {"search": {"metric": "val/probe/top1"}, "experiment/evaluation": {"validation_metrics": ["knn"]}},
        "search.metric: val/probe/top1 is not measured; it needs experiment.evaluation.validation_metrics: [probe]",
    ),
    ({"search": {"metric": "retrieval/u2v/top1"}}, "the test split is read once, at the end"),
    (
        {"search": {"metric": "train/loss"}, "space": {"optimizer.lr": {"grid": [0.1]}}},
        "search.mode: this key is missing, and train/loss has no better end of its own; allowed: min, max",
    ),
    ({"search": {"mode": "min"}}, "search.mode: found 'min', but val/retrieval/mrr is better the higher it is; allow"),
    (
        {"search": {"metric": "val/retrieval/top1", "mode": "min"}},
        "search.mode: found 'min', but val/retrieval/top1 is better the higher it is; allowed: max",
    ),
    ({"experiment": {"evaluation": {"draws": 0}}}, "experiment.evaluation.draws: Input should be greater than or"),
    ({"search": {"mode": "best"}}, "search.mode: Input should be 'min' or 'max', found 'best'"),
    ({"search": {"num_samples": 3}}, "search.num_samples: found 3, but the space has only grids"),
    ({"resources": {"workers": 3}}, "resources.workers: found 3, but experiment.train.batch_size: 16 is not divisible"),
    ({"resources": {"workers": 0}}, "resources.workers: found 0, allowed: a whole number from 1 to 4,096, or a range"),
    ({"resources": {"workers": {"min": 1, "max": 10**9}}}, "allowed: a whole number from 1 to 4,096, or a range"),
    ({"resources": {"cpus_per_worker": math.inf}}, "resources.cpus_per_worker: found inf, allowed: auto, a number of"),
    (
        {"resources": {"workers": {"min": 2, "max": 1}}},
        "workers: found {'min': 2, 'max': 1}, allowed",
    ),
    ({"resources": {"workers": {"min": 1, "most": 2}}}, "resources.workers: unknown key 'most'; known: max, min"),
    (
        {"resources": {"workers": {"min": 5, "max": 7}}},
        "found {min: 5, max: 7}, but experiment.train.batch",
    ),
    ({"resources": {"gpu": "yes"}}, "resources.gpu: found 'yes', allowed: auto, true, false"),
    (
        {"resources": {"cpus_per_worker": "all"}},
        "resources.cpus_per_worker: found 'all', allowed: auto, a number of at least 0.1",
    ),
    (
        {"resources": {"max_concurrent_trials": 1.5}},
        "resources.max_concurrent_trials: found 1.5, allowed: auto, a whole number",
    ),
    ({"name": "../x"}, "name: found '../x', allowed are"),
    (
        {"space/sampler": {"grid": [{"name": "s"}, {"name": "shuffle"}]}},
        "setting 1 (sampler = {name: shuffle}) is the same experiment as setting 0",
    ),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=[words[:40] for _, words in BROKEN])
def test_broken_spaces_name_file_key_and_what_is_allowed(space_file, changes, words):
    file = space_file(changes)
    with pytest.raises(ConfigError) as caught:
        trials_of(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("a: [1", "not YAML"),
        ("- 1", "found list, expected a mapping"),
        ("a: 1\na: 2", "given twice"),
        ("!!python/object/apply:os.system [echo]", "not YAML"),
    ],
)
def test_not_a_mapping(tmp_path, text, words):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_space(file)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_space(tmp_path / "none.yaml")


def test_expansion_in_order_with_stable_names(space_file):
    file = space_file(
        {
            "seeds": [3, 1],
            "space": {
                "sampler": {"grid": [{"name": "s"}, {"name": "spectral", "k": 4}]},
                "train.batch_size": {"grid": [8, 16]},
            },
        }
    )
    trials = trials_of(file)
    assert [(spec.ordinal, spec.setting, spec.seed) for spec in trials.specs] == [
        (0, 0, 3), (1, 0, 1), (2, 1, 3), (3, 1, 1), (4, 2, 3), (5, 2, 1), (6, 3, 3), (7, 3, 1)
    ]  # fmt: skip
    assert [spec.parameters["train.batch_size"] for spec in trials.specs] == [8, 8, 16, 16, 8, 8, 16, 16]
    assert trials.specs[0].parameters["sampler"] == {"name": "shuffle"}
    assert trials.specs[4].parameters["sampler"] == {
        "name": "spectral",
        "k": 4,
        "temperature": 0.1,
        "mix": 0.0,
        "skip": 0,
        "relative_margin": None,
        "absolute_margin": None,
        "community": None,
        "order": "random",
    }
    assert list(trials.specs[0].parameters) == ["sampler", "train.batch_size"]
    for spec in trials.specs:
        assert spec.trial_id == f"{spec.ordinal:03d}-{spec.experiment.digest}"
        assert spec.experiment.seed == spec.seed
    assert trials_of(file) == trials
    assert len({spec.trial_id for spec in trials.specs}) == 8


def test_a_thousand_trials_sort_by_name(space_file):
    names = [spec.trial_id for spec in trials_of(space_file({"seeds": list(range(600))})).specs]
    assert len(names) == 1200
    assert sorted(names) == names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"optimizer.lr": {"uniform": [0.1, 1.0]}}, "search": {"num_samples": 10**9}}, "1000000000 trials"),
        (
            {"space/optimizer.lr": {"uniform": [0.1, 1.0]}, "search": {"name": "optuna", "num_samples": 10**9}},
            r"2000000000 trials \(combinations of the grids: 2, draws of each: 1000000000, seeds: 1\)",
        ),
        (
            {"space/optimizer.lr": {"grid": list(range(1, 2001))}, "space/train.epochs": {"grid": [1, 2, 3]}},
            r"12000 trials \(combinations of the grids: 12000, draws of each: 1, seeds: 1\), allowed: at most 10000",
        ),
        ({"space/optimizer.lr": {"grid": list(range(1, 2502))}, "seeds": [0, 1]}, "10004 trials"),
    ],
)
def test_more_trials_than_anybody_runs_are_refused_before_they_are_made(space_file, monkeypatch, changes, words):
    monkeypatch.setattr(trials, "experiment_with", None)  # what would make the first of them
    with pytest.raises(ConfigError, match=f"study.yaml: space: found up to {words}"):
        expand(read_space(space_file({"baseline": {}, **changes})))


def test_keys_that_few_combinations_have_are_no_more_trials(space_file, monkeypatch):
    monkeypatch.setattr(trials, "MAX_TRIALS", 7)
    many = {"grid": [4, 5, 6]}
    samplers = {"grid": ["shuffle", "spectral", "osgd"]}
    changes = {"space": {"sampler.name": samplers, "sampler.k": many, "sampler.q": {"grid": [2]}}, "baseline": {}}
    assert len(expand(read_space(space_file(changes))).specs) == 1 + 3 + 3
    monkeypatch.setattr(trials, "MAX_TRIALS", 6)
    with pytest.raises(ConfigError, match="found up to 9 trials"):
        expand(read_space(space_file(changes)))


def test_choices_are_drawn_by_the_search_seed_and_pair_over_grids(space_file):
    changes = {
        "space/objective.temperature": {"choice": [0.1, 0.2, 0.3, 0.4, 0.5]},
        "search": {"num_samples": 3, "seed": 2},
    }
    trials = trials_of(space_file(changes))
    drawn = [(spec.parameters["sampler"]["name"], spec.parameters["objective.temperature"]) for spec in trials.specs]
    by_sampler = {name: [t for n, t in drawn if n == name] for name in ("shuffle", "spectral")}
    assert by_sampler["shuffle"] == by_sampler["spectral"]
    assert trials_of(space_file(changes)) == trials
    other = trials_of(space_file({**changes, "search": {"num_samples": 3, "seed": 3}}))
    assert [spec.parameters for spec in other.specs] != [spec.parameters for spec in trials.specs]


def test_repeated_draws_are_merged_and_said(space_file):
    trials = trials_of(
        space_file(
            {"space": {"objective.temperature": {"choice": [0.1, 0.2]}}, "search": {"num_samples": 50}, "baseline": {}}
        )
    )
    assert len(trials.specs) == 2
    assert trials.notes == ("48 draws repeat an earlier setting and are left out",)


def test_overrides(space_file):
    trials = trials_of(
        space_file(),
        "seeds=[7]",
        "experiment.train.epochs=5",
        "space.sampler.grid=[{name: shuffle}]",
        "resources.workers=2",
    )
    assert [(spec.seed, spec.experiment.train.epochs) for spec in trials.specs] == [(7, 5)]
    for wrong in ("seeds", "space.optimizer.lr"):
        with pytest.raises(ConfigError, match="expected KEY=VALUE"):
            trials_of(space_file(), wrong)
    with pytest.raises(ConfigError, match="experiment.train.epoch: unknown key; did you mean 'epochs'"):
        trials_of(space_file(), "experiment.train.epoch=5")


def test_baseline_takes_aliases_and_parts_of_blocks(space_file):
    for baseline in ({"sampler": "s"}, {"sampler": {"name": "spectral"}}, {"sampler": {"k": 4}}, {}):
        trials_of(space_file({"baseline": baseline}))


def spared(file) -> set[int]:
    """The settings that a race never stops, which are those that a report compares with."""
    found, trials = read_space(file), trials_of(file)
    study = new_study(found, trials, "test")
    rule = build_early_stopping(found.space, study, trials.by_id, LocalStore(file.parent))
    assert rule.protected_settings == {setting.id for setting in baselines(study, settings_of(study))}
    return set(rule.protected_settings)


NAMES = {"sampler.name": {"grid": ["shuffle", "spectral"]}}
BLOCKS = {"sampler": {"grid": [{"name": "s"}, {"name": "spectral", "k": 4}]}}


@pytest.mark.parametrize(
    ("space", "baseline", "expected"),
    [
        (BLOCKS, {"sampler.name": "shuffle"}, {0}),
        (BLOCKS, {"sampler.name": "s"}, {0}),
        (BLOCKS, {"sampler": {"k": 4}}, {1}),
        (BLOCKS, {"sampler.k": 4}, {1}),
        (BLOCKS, {"sampler": "shuffle", "train.epochs": 2, "data.name": "digits"}, {0}),
        (NAMES, {"sampler": "s"}, {0}),
        (NAMES, {"sampler.name": "sc_even"}, {1}),
        ({"encoder.name": {"grid": ["resnet_small", "resnet18"]}}, {"encoder": "resnet18"}, {1}),
        (BLOCKS, {"train.epochs": 2}, set()),
        (BLOCKS, {"planner.schedule": {}}, set()),
        (BLOCKS, {}, set()),
    ],
)
def test_the_race_and_the_report_have_the_same_baseline(space_file, space, baseline, expected):
    assert spared(space_file({"space": space, "baseline": baseline, "scheduler": {"name": "asha"}})) == expected


def test_overrides_of_swept_keys_stand_beside_each_other(space_file):
    rates = ("space.optimizer.lr={grid: [0.1]}", "space.optimizer.momentum.grid=[0.8, 0.9]")
    found = trials_of(space_file(), *rates).specs
    assert list(found[0].parameters) == ["sampler", "optimizer.lr", "optimizer.momentum"]
    assert [spec.parameters["optimizer.momentum"] for spec in found] == [0.8, 0.9] * 2
    found = trials_of(space_file(), "space.sampler.k={grid: [2, 4]}").specs
    assert [spec.experiment.sampler.get("k") for spec in found] == [None, 2, 4], "beside the file's blocks"
    found = trials_of(space_file(), "space.sampler={choice: [{name: shuffle}]}", "space.sampler.grid=[{name: s}]").specs
    assert len(found) == 1
    nested = {"space": {"optimizer": {"lr": {"grid": [0.1, 0.2]}}}, "baseline": {}}
    assert len(trials_of(space_file(nested), "space.optimizer.lr.grid=[0.3]").specs) == 1
    for wrong in ("space.=1", "space.optimizer..lr=1"):
        with pytest.raises(ConfigError, match="is not a dotted path of keys"):
            trials_of(space_file(), wrong)


def test_another_scheduler_is_said_when_a_study_goes_on(space_file, tmp_path):
    store = LocalStore(tmp_path / "out")
    asha = space_file({"scheduler": {"name": "asha"}})
    file, trials = read_space(asha), trials_of(asha)
    create(store, file, trials, new_study(file, trials, "test"))
    assert load(store, file, trials)[1].notes == ()
    fifo = read_space(asha, ["scheduler={name: fifo}"])
    (note,) = load(store, fifo, trials)[1].notes
    assert note.startswith("scheduler was {name: asha, grace_period: 1")
    assert note.endswith("now it is {name: fifo}; what was stopped stays stopped")


def test_what_is_said_of_a_scheduler_holds_for_swept_epochs(space_file):
    def said(rule: dict, **changes) -> str:
        file = space_file({"scheduler": {"name": "asha", **rule}, **changes})
        return "\n".join(plan_lines(read_space(file).space))

    swept = {"space": {**BLOCKS, "train.epochs": {"grid": [2, 50]}}}
    assert "nobody is stopped" in said({"grace_period": 2})
    assert "nobody is stopped" not in said({"grace_period": 2}, **swept)
    assert "no less than the 50 epochs: nobody is stopped" in said({"grace_period": 50}, **swept)
    assert "none finishes" not in said({"max_t": 10}, **swept)
    assert "max_t 1 is below the 2 epochs: all end there" in said({"max_t": 1}, **swept)
    assert "the baseline is never stopped" in said({}, **swept)
    assert "the baseline is never stopped" not in said({"max_t": 10}, **swept)


def test_a_baseline_that_is_every_setting_is_said_to_be_none(space_file):
    for search in ({}, {"search": {"name": "optuna", "num_samples": 2}}):
        changes = {"space": {**BLOCKS, "optimizer.lr": {"uniform": [0.1, 1.0]}}, **search}
        (note,) = trials_of(space_file({**changes, "baseline": {"train.epochs": 2}})).notes
        assert note == "baseline {train.epochs: 2} is every setting, so nothing is compared with it and none is spared"
        assert trials_of(space_file({**changes, "baseline": {"sampler": "s"}})).notes == ()
    assert trials_of(space_file({"space": {"train.epochs": {"grid": [2]}}})).notes == (), "the only setting"


def test_a_whole_block_and_a_key_inside_it(space_file):
    trials = trials_of(
        space_file(
            {"space": {"sampler.k": {"grid": [2, 4]}, "sampler": {"grid": [{"name": "spectral"}]}}, "baseline": {}}
        )
    )
    assert [spec.experiment.sampler["k"] for spec in trials.specs] == [2, 4]


def test_digest_is_of_the_question_asked_not_of_the_machine(space_file):
    def digest(changes=None):
        file = read_space(space_file(changes))
        return space_digest(expand(file), file.space)

    assert digest() == digest({"resources": {"workers": 2}, "question": "Why?", "name": "other"})
    assert len({digest(), digest({"seeds": [1]}), digest({"baseline": {}})}) == 3
    rates = {"space": {"optimizer.lr": {"grid": [0.1, 0.2]}}, "baseline": {}}
    by_loss = [{**rates, "search": {"metric": "train/loss", "mode": mode}} for mode in ("min", "max")]
    assert len({digest(changes) for changes in (rates, *by_loss)}) == 3


@given(st.text(max_size=12))
def test_names_never_leave_the_results_folder(name):
    try:
        check_name(name, "--name")
    except ConfigError:
        return
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith((".", "-"))
    assert name == name.strip() != ""


def test_the_record_of_a_study_is_its_space(space_file, tmp_path):
    store = LocalStore(tmp_path / "out")
    path = space_file({"seeds": [3, 4]})
    file, trials = read_space(path, ["experiment.train.epochs=7"]), trials_of(path, "experiment.train.epochs=7")
    create(store, file, trials, new_study(file, trials, "test"))
    again = read_space(tmp_path / "out" / "space.yaml")
    assert (again.given, again.overrides, again.space) == (file.given, file.overrides, file.space)
    assert load(store, again, expand(again))[0].trials.keys() == trials.by_id.keys(), "--resume accepts it, too"
    assert read_space(again.path, ["seeds=[5]"]).space.seeds == [5], "an override comes after those of the study"
    again.path.write_text("given: 1\nset: []\nresolved: {experiment: {}}\n")
    with pytest.raises(ConfigError, match="this record of a study is damaged"):
        read_space(again.path)
