"""Domains: what is tried, what is drawn, and which keys go with which blocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.domains import describe, drawn_from, extremes, fill, parse, plain, points
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space

BLOCKS = {
    "choice": [
        {"name": "shuffle"},
        {"name": "osgd", "k": {"randint": [10, 13]}, "q": {"choice": [1, 2]}},
        {"name": "spectral", "k": 4},
    ]
}


def parameters(file) -> list[dict]:
    return [spec.parameters for spec in expand(read_space(file)).specs]


@given(
    st.sampled_from(["uniform", "loguniform", "randint"]),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.integers(0, 2**40),
    st.integers(0, 1000),
)
def test_draws_lie_inside_and_depend_on_seed_path_and_number_alone(kind, low, width, seed, number):
    domain = parse({kind: [low, low + width]})
    value = drawn_from(seed, number)("a", domain)
    assert low <= value <= low + width
    assert isinstance(value, int if kind == "randint" else float)
    assert kind != "randint" or value < low + width
    assert value == drawn_from(seed, number)("a", domain)


def test_ranges_are_covered_evenly():
    draws = {
        kind: [drawn_from(0, i)("a", parse({kind: ends})) for i in range(2000)]
        for kind, ends in {"uniform": [0, 1], "loguniform": [0.01, 1], "randint": [3, 7]}.items()
    }
    assert abs(sum(value < 0.5 for value in draws["uniform"]) / 2000 - 0.5) < 0.05
    assert abs(sum(value < 0.1 for value in draws["loguniform"]) / 2000 - 0.5) < 0.05, "even in the logarithm"
    counts = {value: draws["randint"].count(value) for value in (3, 4, 5, 6)}
    assert sum(counts.values()) == 2000, "the upper end is excluded"
    assert all(abs(count / 2000 - 0.25) < 0.05 for count in counts.values())


def test_another_path_another_number_or_another_seed_is_another_draw():
    domain = parse({"uniform": [0, 1]})
    found = {drawn_from(seed, i)(path, domain) for seed in (0, 1) for i in range(5) for path in ("a", "b")}
    assert len(found) == 20


def test_a_block_draws_only_its_own_parameters():
    (point,) = points({"sampler": parse(BLOCKS)}, applies)
    found = [fill(point, applies, drawn_from(0, i))["sampler"] for i in range(200)]
    assert {tuple(block) for block in found} == {("name",), ("name", "k", "q"), ("name", "k")}
    osgd = [block for block in found if block["name"] == "osgd"]
    assert {(block["k"], block["q"]) for block in osgd} == {(k, q) for k in (10, 11, 12) for q in (1, 2)}
    assert {block["k"] for block in found if block["name"] == "spectral"} == {4}


def test_extremes_are_all_combinations_of_ends():
    (point,) = points({"sampler": parse(BLOCKS), "optimizer.lr": parse({"loguniform": [0.1, 1]})}, applies)
    found = list(extremes(point, applies))
    blocks = [{"name": "shuffle"}, *({"name": "osgd", "k": k, "q": q} for k in (10, 12) for q in (1, 2))]
    blocks.append({"name": "spectral", "k": 4})
    assert found == [{"sampler": block, "optimizer.lr": lr} for block in blocks for lr in (0.1, 1.0)]


def test_a_parameter_goes_with_the_blocks_that_have_it():
    domains = {
        "sampler": parse({"grid": [{"name": "s"}, {"name": "osgd", "k": 20}, {"name": "spectral"}]}),
        "sampler.q": parse({"grid": [2, 5]}),
        "sampler.k": parse({"randint": [10, 12]}),
    }
    found = [{key: plain(value) for key, value in point.items()} for point in points(domains, applies)]
    k = {"sampler.k": {"randint": [10, 12]}}
    osgd = {"sampler": {"name": "osgd", "k": 20}}
    assert found == [
        {"sampler": {"name": "s"}},
        {**osgd, "sampler.q": 2, **k},
        {**osgd, "sampler.q": 5, **k},
        {"sampler": {"name": "spectral"}, **k},
    ]


def test_the_order_is_that_of_the_file_with_blocks_before_their_keys():
    domains = {key: parse({"grid": [0, 1]}) for key in ("train.epochs", "sampler.k")}
    domains["sampler"] = parse({"grid": [{"name": "spectral"}, {"name": "shuffle"}]})
    found = [tuple(point.values()) for point in points(domains, applies)]
    spectral, shuffle = {"name": "spectral"}, {"name": "shuffle"}
    assert found == [
        (epochs, *rest) for epochs in (0, 1) for rest in ((0, spectral), (1, spectral), (shuffle,))
    ]  # fmt: skip


def test_words():
    assert describe(parse(BLOCKS)) == (
        "one of {name: shuffle}, {name: osgd, k: a whole number from 10 to 12, q: one of 1, 2}, {name: spectral, k: 4}"
    )
    assert describe(parse({"loguniform": [1e-4, 0.1]})) == "0.0001 to 0.1, evenly in its logarithm"
    assert describe(parse({"uniform": [0, 2]})) == "0 to 2"
    assert describe(parse({"grid": [True, None]})) == "each of true, null"


def test_conditional_parameters_from_a_space_file(space_file):
    changes = {
        "space": {
            "sampler": {"choice": [{"name": "shuffle"}, {"name": "osgd", "q": 1}, {"name": "sc_even", "k": 2}]},
            "sampler.k": {"randint": [2, 9]},
            "sampler.q": {"choice": [1, 2]},
            "optimizer.lr": {"loguniform": [1e-3, 1.0]},
        },
        "search": {"num_samples": 30},
        "baseline": {},
    }
    found = parameters(space_file(changes))
    assert len(found) == 30
    assert {p["sampler"]["name"] for p in found} == {"shuffle", "osgd", "spectral"}
    for p in found:
        keys = {"shuffle": set(), "osgd": {"sampler.k", "sampler.q"}, "spectral": {"sampler.k"}}[p["sampler"]["name"]]
        assert {key for key in p if key.startswith("sampler.")} == keys
        assert all(p[key] == p["sampler"][key.removeprefix("sampler.")] for key in keys)
        assert 1e-3 <= p["optimizer.lr"] <= 1
    assert len({p["optimizer.lr"] for p in found}) == 30
    assert {p["sampler.k"] for p in found if "sampler.k" in p} <= set(range(2, 9))
    assert parameters(space_file(changes)) == found


def test_a_name_alone_may_be_swept(space_file):
    changes = {
        "experiment/sampler": {"name": "osgd", "k": 10, "q": 2},
        "space": {"sampler.name": {"grid": ["shuffle", "osgd_kb_loose", "spectral"]}, "sampler.k": {"choice": [4, 5]}},
        "baseline": {"sampler": "shuffle"},
    }
    shuffle, osgd, spectral = expand(read_space(space_file(changes))).specs
    assert shuffle.parameters == {"sampler.name": "shuffle"}
    assert (osgd.experiment.sampler["q"], spectral.experiment.sampler["name"]) == (2, "spectral")
    assert osgd.parameters["sampler.k"] == spectral.parameters["sampler.k"], "the same draw, so that they pair"


def test_a_parameter_may_stand_before_its_parts_name(space_file):
    changes = {
        "space": {"sampler.k": {"randint": [4, 9]}, "sampler.name": {"grid": ["spectral", "osgd"]}},
        "experiment/sampler": {"name": "osgd", "q": 2},
        "baseline": {},
    }
    found = expand(read_space(space_file(changes))).specs
    assert [spec.experiment.sampler["name"] for spec in found] == ["spectral", "osgd"]
    assert all(4 <= spec.experiment.sampler["k"] < 9 for spec in found)


def test_equal_domains_of_grid_points_pair(space_file):
    changes = {"space/optimizer.lr": {"loguniform": [0.01, 1]}, "search": {"num_samples": 4}}
    by_sampler: dict[str, list[float]] = {}
    for p in parameters(space_file(changes)):
        by_sampler.setdefault(p["sampler"]["name"], []).append(p["optimizer.lr"])
    assert by_sampler["shuffle"] == by_sampler["spectral"]
    assert len(set(by_sampler["shuffle"])) == 4
    assert math.prod(by_sampler["shuffle"]) > 0


@pytest.mark.parametrize("kind", ["grid", "choice"])
def test_seeds_are_replicates_and_never_a_domain(space_file, kind):
    found = expand(read_space(space_file({"seeds": [5, 6], "space/optimizer.lr": {kind: [0.1]}}))).specs
    assert [spec.seed for spec in found] == [5, 6, 5, 6]
    assert [spec.setting for spec in found] == [0, 0, 1, 1]
    assert all("seed" not in spec.parameters for spec in found)
