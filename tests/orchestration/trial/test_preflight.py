"""The checks before any trial starts."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from mbcl import engine
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.models import build
from mbcl.orchestration.results_folder.opened_study import OpenedStudy
from mbcl.orchestration.search_space.expansion import Trials
from mbcl.orchestration.trial.preflight import PreflightReport, check_data
from mbcl.plan import Embeddings
from mbcl.study.record import StudyRecord

from ..helpers import SPACE

SAMPLERS = ({"name": "shuffle"}, {"name": "spectral", "k": 4}, {"name": "kmeans"}, {"name": "fixed"})
SIZES = (200, 250, 300)


def grid() -> dict[int, Experiment]:
    """Settings as a space numbers them: the last key, ``data.max_samples``, varies fastest."""
    content = yaml.safe_load(yaml.safe_dump(SPACE))["experiment"]
    pairs = [(sampler, size) for sampler in SAMPLERS for size in SIZES]
    return {
        setting: Experiment.model_validate(
            content | {"sampler": sampler, "data": {"name": "digits", "max_samples": size}}
        )
        for setting, (sampler, size) in enumerate(pairs)
    }


def test_check_data_loads_each_data_set_once_and_frees_it(monkeypatch):
    loaded: list[int] = []
    references: list[Any] = []
    load = engine.load_data

    def counted_load(data, *, seed):
        assert not [reference for reference in references if reference() is not None]
        data_set = load(data, seed=seed)
        loaded.append(data.max_samples)
        references.append(weakref.ref(data_set.train.images))
        return data_set

    monkeypatch.setattr(engine, "load_data", counted_load)
    experiments = grid()
    checked = check_data(experiments, "space.yaml")
    assert loaded == list(SIZES)
    for setting in experiments:
        single = check_data({setting: experiments[setting]}, "space.yaml")
        assert checked.max_pools[setting] == single.max_pools[setting]
        assert checked.planning_cost[setting] == single.planning_cost[setting]


def test_check_data_orders_notes_by_setting(monkeypatch):
    data_sizes = engine.data_sizes

    def warn_and_return_sizes(experiment, data):
        warnings.warn(f"{experiment.sampler.name} of {experiment.data.max_samples}", UserWarning, stacklevel=2)
        return data_sizes(experiment, data)

    monkeypatch.setattr(engine, "data_sizes", warn_and_return_sizes)
    checked = check_data(grid(), "space.yaml")
    expected = [f"{sampler['name']} of {size}" for sampler in SAMPLERS for size in SIZES]
    assert [note for note in checked.notes if note in expected] == expected


def test_check_data_refuses_a_setting_that_does_not_fit_its_data():
    experiments = grid()
    changes = {"train": experiments[4].train.model_copy(update={"batch_size": 256})}
    experiments[4] = experiments[4].model_copy(update=changes)
    with pytest.raises(ConfigError, match=r"space.yaml: experiment.train.batch_size: 256 is above the 225 training"):
        check_data(experiments, "space.yaml")


@pytest.mark.parametrize("sampler", [{"name": "spectral", "k": 2}, {"name": "kmeans"}, {"name": "refined"}])
def test_check_data_counts_the_pools_of_every_source(sampler):
    content = yaml.safe_load(yaml.safe_dump(SPACE))["experiment"]
    data = {"name": "digits", "max_samples": 600, "together": "labels"}
    experiment = Experiment.model_validate(content | {"sampler": sampler, "data": data})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = engine.load_data(experiment.data, seed=0).samples
        planned: list[int] = []
        z = torch.randn(samples.number, 8, generator=torch.Generator().manual_seed(0))

        def count(plan_pool, items):
            planned.append(len(items))
            return [plan_pool(*item) for item in items]

        samples.bind(experiment.build_sampler()).plan(samples.number, Embeddings(z, z), map_pools=count)
        report = check_data({0: experiment}, "space.yaml")
    assert planned == [report.max_pools[0]]
    assert report.max_pools[0] >= 10, "a pool of every class at least"


def test_a_study_refuses_other_weights_than_it_began_with(tmp_path):
    """Seeds that ``--extend`` adds would begin with other weights than those that they are compared with."""
    file = tmp_path / "encoder.safetensors"
    experiment = next(iter(grid().values()))

    def report(seed: int) -> PreflightReport:
        encoder = {key: value for key, value in experiment.encoder.items() if key != "weights"}
        safetensors.torch.save_file(build(encoder, in_channels=1, seed=seed).encoder.state_dict(), file)
        block = {**experiment.encoder, "weights": str(file)}
        content = experiment.resolved() | {"encoder": block}
        return check_data({0: Experiment.model_validate(content)}, "space.yaml")

    study = StudyRecord(name="s", space_digest="", metric="m", mode="max", created="", trials={})
    opened = OpenedStudy(study, Trials((), (), 0), {})
    opened.take_data(report(1))
    opened.take_data(report(1))
    with pytest.raises(ConfigError, match=r"experiment\.encoder\.weights .*: the weights are not those that the study"):
        opened.take_data(report(2))
