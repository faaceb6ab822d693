"""The margin of equivalence of a space, and what a dry run says of the seeds."""

from __future__ import annotations

import pytest
import yaml

from mbcl.errors import ConfigError
from mbcl.orchestration.results_folder.layout import new_study
from mbcl.orchestration.search_space.describe import power_lines
from mbcl.orchestration.search_space.expansion import expand, space_digest
from mbcl.orchestration.search_space.schema import SpaceFile, read_space


def space_file(tmp_path, **other) -> SpaceFile:
    grid = [{"name": "shuffle"}, {"name": "spectral", "k": 4}, {"name": "spectral", "k": 2}]
    content = {"baseline": {"sampler": "shuffle"}, "space": {"sampler": {"grid": grid}}} | other
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_space(path)


def lines(file: SpaceFile) -> list[str]:
    return list(power_lines(file.space, new_study(file, expand(file), "study")))


def test_power_lines_state_what_the_seeds_can_show(tmp_path):
    few, decide = lines(space_file(tmp_path, seeds=[0, 1, 2]))
    assert few.startswith("3 pairs of seeds cannot show any difference at 0.05")
    assert few.endswith("7 pairs are the fewest.")
    assert "To tell a difference of 0.01 from none takes about" in decide
    assert "0.0098 for MRR" in decide
    enough, decide = lines(space_file(tmp_path, seeds=list(range(8)), equivalence=0.02))
    assert enough.startswith("8 pairs of seeds show a difference of 0.014 with 80 % power")
    assert "To tell a difference of 0.02" in decide
    assert lines(space_file(tmp_path, baseline={})) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("code_docs", ["show a difference of 0.0024 with", "0.0017 for MRR on functions"]),
        ("cifar10", ["show a difference of 1.4 standard deviations of the paired differences with"]),
    ],
)
def test_the_assumed_spread_is_that_of_the_data(tmp_path, data, said):
    found = lines(space_file(tmp_path, experiment={"data": {"name": data}}, seeds=list(range(8))))
    assert len(found) == len(said)
    assert all(text in line for text, line in zip(said, found, strict=True))


def test_a_search_is_promised_no_power(tmp_path):
    domains = {"sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]}}
    drawn = {**domains, "optimizer.lr": {"uniform": [0.1, 0.2]}}
    optuna = space_file(tmp_path, space=drawn, search={"name": "optuna", "num_samples": 4}, seeds=list(range(8)))
    (line,) = lines(optuna)
    assert "no difference is tested" in line
    random = space_file(tmp_path, space=drawn, search={"num_samples": 4}, seeds=list(range(10)))
    assert lines(random)[0].startswith("10 pairs of seeds show"), "a draw has a counterpart with the same values"
    unpaired = {"sampler": {"grid": [{"name": "shuffle"}]}, "optimizer": {"grid": RATES}}
    (line,) = lines(space_file(tmp_path, space=unpaired, baseline={"optimizer.name": "lars"}))
    assert "no difference is tested" in line


RATES = [{"name": "lars", "lr": 0.1}, {"name": "lars", "lr": 0.2}, {"name": "sgd", "lr": 0.3}]


def test_power_counts_no_pair_of_the_seed_of_early_stopping(tmp_path):
    (few, *_) = lines(space_file(tmp_path, seeds=list(range(8)), scheduler={"name": "asha"}))
    assert few.startswith("7 pairs of seeds")
    (one, *_) = lines(space_file(tmp_path, seeds=[0], scheduler={"name": "asha"}))
    assert one.startswith("1 pair of seeds cannot show any difference")


def test_the_margin_is_recorded_and_belongs_to_the_study(tmp_path):
    default, other = space_file(tmp_path), space_file(tmp_path, equivalence=0.02)
    assert new_study(other, expand(other), "study").equivalence == 0.02
    assert space_digest(expand(default), default.space) != space_digest(expand(other), other.space)
    same = space_file(tmp_path, equivalence=0.01)
    assert space_digest(expand(default), default.space) == space_digest(expand(same), same.space)


def test_a_study_knows_whether_it_is_a_search(tmp_path):
    grid, search = (
        space_file(tmp_path),
        space_file(tmp_path, space={"optimizer.lr": {"uniform": [0.1, 0.2]}}, baseline={}),
    )
    assert not new_study(grid, expand(grid), "study").searched
    assert new_study(search, expand(search), "study").searched


@pytest.mark.parametrize("margin", [0, -0.01, float("inf")])
def test_the_margin_is_a_positive_number(tmp_path, margin):
    with pytest.raises(ConfigError, match="equivalence"):
        space_file(tmp_path, equivalence=margin)
