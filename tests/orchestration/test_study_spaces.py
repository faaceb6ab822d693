"""The spaces of the study: eight experiments on three data sets each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data.installed import install, write_functions
from data.official import write_fashion_mnist

from mbcl.config.yaml_reader import parse_yaml
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.paired import fewest_pairs

from .helpers import ROOT, run_study
from .test_spaces_shipped import shrink_options

STUDY = ROOT / "tune_spaces" / "study"
DATA = ("code_docs", "digits", "fashion_mnist")
EXPERIMENTS = (
    "batch_size",
    "community",
    "false_negatives",
    "hardness",
    "objectives",
    "samplers",
    "schedules",
    "time_to_quality",
)
NAMES = [f"{experiment}_{data}" for experiment in EXPERIMENTS for data in DATA]
VARIED = {"sampler", "optimizer", "schedule", "train"}
"""Blocks of the base in which the experiments on one data set differ: batches, epochs, and rates that grow with B."""


def content(name: str) -> dict:
    return parse_yaml((STUDY / f"{name}.yaml").read_text(), name)


@pytest.fixture
def data_options(tmp_path, monkeypatch):
    """Make a small ``code_docs``, or black images for Fashion-MNIST, and return the options for them."""

    def of(name: str) -> list[str]:
        if name.endswith("code_docs"):
            write_functions(tmp_path / "site", 1200)
            install(tmp_path / "site", tmp_path / "cache", monkeypatch)
        if not name.endswith("fashion_mnist"):
            return []
        (tmp_path / "images").mkdir(exist_ok=True)
        write_fashion_mnist(tmp_path / "images", num_train=12_800)
        if "data" not in content(name)["space"]:
            return [f"experiment.data.dir={tmp_path / 'images'}"]
        blocks = [block | {"dir": str(tmp_path / "images")} for block in content(name)["space"]["data"]["grid"]]
        return [f"space.data.grid={json.dumps(blocks)}"]

    return of


def test_every_experiment_is_on_every_data_set():
    assert sorted(path.stem for path in STUDY.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_asks_one_question(experiment):
    questions = [content(f"{experiment}_{data}")["question"] for data in DATA]
    assert len({re.sub("package|class", "label", question) for question in questions}) == 1
    assert all(question.endswith("?") for question in questions)


@pytest.mark.parametrize("data", DATA)
def test_the_experiments_on_a_data_set_have_one_base(data):
    bases = [content(f"{experiment}_{data}")["experiment"] for experiment in EXPERIMENTS]
    assert len({str({key: block for key, block in base.items() if key not in VARIED}) for base in bases}) == 1


@pytest.mark.filterwarnings("ignore:fashion_mnist")
@pytest.mark.parametrize("name", NAMES)
def test_a_space_states_why_and_what_it_costs_and_can_decide(name, data_options):
    text = (STUDY / f"{name}.yaml").read_text()
    head = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    assert "Mechanism: " in head
    assert "Refuted" in head
    file = read_space(STUDY / f"{name}.yaml", data_options(name))
    trials = expand(file)
    assert f"Cost: {trials.total} trials;" in head
    assert file.space.name == name
    planned = {spec.arm or spec.setting for spec in trials.specs if spec.experiment.sampler.name != "shuffle"}
    comparisons = len(planned) * (2 if file.space.control else 1)
    assert len(file.space.seeds) >= fewest_pairs(comparisons), "a difference can be claimed after Holm's correction"


@pytest.mark.parametrize("name", NAMES)
def test_a_space_shrinks_to_one_trial(name):
    overrides = [word for word in shrink_options(f"study/{name}") if word != "--set"]
    assert expand(read_space(STUDY / f"{name}.yaml", overrides)).total == 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_shrunk_to_one_trial_runs(experiment, tmp_path):
    options = [*shrink_options(f"study/{experiment}_digits"), "--name", "short"]
    result = run_study(STUDY / f"{experiment}_digits.yaml", tmp_path, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (Path(tmp_path) / "short" / "report.html").stat().st_size > 0
