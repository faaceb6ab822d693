"""Ties: a key that has the value of another one, in grids, draws and searches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.orchestration.results_folder.layout import new_study
from mbcl.orchestration.search_space.describe import domain_lines, plan_lines
from mbcl.orchestration.search_space.domains import SameAs, parse, plain
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.search_space.ties import resolve_ties
from mbcl.study.comparisons import compare

from ..helpers import errors_in

TEMPERATURE = {"same_as": "objective.temperature"}


def experiments(path, *overrides):
    return [spec.experiment for spec in expand(read_space(path, list(overrides))).specs]


def test_a_tied_key_follows_a_swept_one_where_the_setting_has_it(space_file):
    path = space_file({"space/sampler.temperature": TEMPERATURE, "space/objective.temperature": {"grid": [0.2, 0.5]}})
    found = [(e.sampler.name, e.objective["temperature"], e.sampler.get("temperature")) for e in experiments(path)]
    assert found == [
        ("shuffle", 0.2, None), ("shuffle", 0.5, None), ("spectral", 0.2, 0.2), ("spectral", 0.5, 0.5)
    ]  # fmt: skip
    specs = expand(read_space(path)).specs
    assert specs[2].parameters["sampler.temperature"] == 0.2
    assert "sampler.temperature" not in specs[0].parameters


def test_settings_with_ties_are_paired_with_the_baseline_of_the_same_value(space_file):
    path = space_file({"space/sampler.temperature": TEMPERATURE, "space/objective.temperature": {"grid": [0.2, 0.5]}})
    file = read_space(path)
    study = new_study(file, expand(file), "study")
    for trial in study.trials.values():
        trial.status, trial.metrics = "finished", {"retrieval/u2v/top1": 0.5}
    pairs = [(c.setting, c.baseline) for c in compare(study, "retrieval/u2v/top1")]
    assert pairs == [(2, 0), (3, 1)]


def test_a_tie_to_a_constant_to_a_default_and_in_a_block(space_file):
    block = {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4, "temperature": TEMPERATURE}]}
    constant = {"space/sampler": block, "experiment/objective": {"name": "simclr", "temperature": 0.3}}
    assert experiments(space_file(constant))[1].sampler["temperature"] == 0.3
    default = {"space/sampler": block, "space/objective": {"grid": [{"name": "dcl"}]}}
    assert experiments(space_file(default))[1].sampler["temperature"] == 0.1


def test_a_chain_of_ties_and_a_set_override(space_file):
    path = space_file({"space/embeddings.batch_size": {"same_as": "train.batch_size"}})
    override = ("space.train.batch_size.grid=[8, 20]", "space.evaluation.batch_size.same_as=embeddings.batch_size")
    found = experiments(path, *override)
    sizes = [(e.train.batch_size, e.embeddings.batch_size, e.evaluation.batch_size) for e in found]
    assert sizes == 2 * [(8, 8, 8), (20, 20, 20)]


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_a_tie_follows_what_a_search_draws(space_file, name):
    changes = {"space/objective.temperature": {"loguniform": [0.05, 0.5]}, "space/sampler.temperature": TEMPERATURE}
    trials = expand(read_space(space_file(changes | {"search": {"name": name, "num_samples": 3}})))
    tied = [spec.experiment for spec in trials.specs or trials.probes if spec.experiment.sampler.name == "spectral"]
    assert len({e.sampler["temperature"] for e in tied}) >= 2
    assert all(e.sampler["temperature"] == e.objective["temperature"] for e in tied)


def test_words(space_file):
    changes = {"space/train.epochs": {"same_as": "schedule.warmup_epochs"}, "experiment/schedule": {"warmup_epochs": 3}}
    file = read_space(space_file(changes | {"space/optimizer.lr": {"uniform": [0.1, 0.2]}}))
    assert "train.epochs: the same as schedule.warmup_epochs" in list(domain_lines(file.space))
    assert all("epochs" not in line for line in plan_lines(file.space))
    assert plain(file.space.space["train.epochs"]) == {"same_as": "schedule.warmup_epochs"}
    assert parse(parse({"same_as": "a.b"})) == SameAs("a.b")


BAD = [
    ({"sampler.temperature": {"same_as": "objective.temperatures"}}, "did you mean 'temperature'?"),
    ({"sampler.temperature": {"same_as": "objectiv.temperature"}}, "unknown key 'objectiv'; did you mean 'objective'?"),
    ({"train.epochs": {"same_as": "train.epohcs"}}, "space.train.epochs.same_as.train.epohcs: unknown key 'epohcs'"),
    ({"train.epochs": {"same_as": "train.epochs"}}, "space.train.epochs.same_as: found 'train.epochs', which is tied"),
    ({"train.epochs": {"same_as": "train"}}, "found 'train', which is tied to itself"),
    ({"train.epochs": {"same_as": "seed"}}, "which is another in every replicate"),
    ({"objective": {"same_as": "sampler"}}, "a component cannot be tied"),
    ({"objective.name": {"same_as": "sampler.name"}}, "a component cannot be tied"),
    ({"train.epochs": {"same_as": 3}}, "same_as: expected a dotted key such as objective.temperature, found 3"),
    ({"train.epochs": {"sameas": "train.x"}}, "unknown domain 'sameas'; did you mean 'same_as'?"),
    (
        {"train.epochs": {"same_as": "train.eval_every"}, "train.eval_every": {"same_as": "train.epochs"}},
        "its same_as is a circle: train.epochs -> train.eval_every -> train.epochs",
    ),
    ({"train.epochs": {"same_as": "optimizer.lr"}}, "train.epochs: Input should be a valid integer"),
]


@pytest.mark.parametrize(("keys", "text"), BAD)
def test_bad_ties_are_refused_with_exit_code_2(space_file, tmp_path, capsys, keys, text):
    pytest.importorskip("ray")
    import run_ray

    path = space_file({f"space/{key}": value for key, value in keys.items()})
    assert run_ray.main(["--space", str(path), "--results-dir", str(tmp_path / "results"), "--dry-run"]) == 2
    error = errors_in(capsys.readouterr().err)
    assert error.startswith(f"error: {path}: ")
    assert text in error
    assert error.count("\n") == 1


@given(st.permutations(range(6)), st.data())
def test_ties_resolve_to_the_value_at_the_end_of_the_chain_in_any_order(order, data):
    parents = {}
    for position, key in enumerate(order):  # a forest: a key is tied to one before it, or has a value
        earlier = order[:position]
        parents[key] = data.draw(st.sampled_from([None, *earlier])) if earlier else None
    content = {f"k{key}": SameAs(f"k{parents[key]}") if parents[key] is not None else key for key in range(6)}
    resolve_ties(content)
    for key in range(6):
        root = key
        while parents[root] is not None:
            root = parents[root]
        assert content[f"k{key}"] == root


@given(st.integers(1, 5), st.integers(0, 4))
def test_every_circle_is_refused(length, tail):
    content = {f"c{i}": SameAs(f"c{(i + 1) % length}") for i in range(length)}
    content |= {f"t{i}": SameAs("c0" if i == 0 else f"t{i - 1}") for i in range(tail)}
    with pytest.raises(ConfigError, match="is a circle"):
        resolve_ties(dict(sorted(content.items(), reverse=True)))
