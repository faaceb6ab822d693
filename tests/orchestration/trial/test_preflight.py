"""What is checked before any trial starts."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import pytest
import yaml

from mbcl import engine
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.trial.preflight import check_data

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


def test_every_data_set_is_loaded_once_and_gone_before_the_next(monkeypatch):
    loaded: list[int] = []
    alive: list[Any] = []
    load = engine.load_data

    def counted(data, *, seed):
        assert not [reference for reference in alive if reference() is not None]
        found = load(data, seed=seed)
        loaded.append(data.max_samples)
        alive.append(weakref.ref(found.train.images))
        return found

    monkeypatch.setattr(engine, "load_data", counted)
    experiments = grid()
    checked = check_data(experiments, "space.yaml")
    assert loaded == list(SIZES)
    for setting in experiments:
        alone = check_data({setting: experiments[setting]}, "space.yaml")
        assert checked.max_pools[setting] == alone.max_pools[setting]
        assert checked.planning_cost[setting] == alone.planning_cost[setting]


def test_notes_are_in_the_order_of_the_settings(monkeypatch):
    facts = engine.data_sizes

    def warned(experiment, data):
        warnings.warn(f"{experiment.sampler.name} of {experiment.data.max_samples}", UserWarning, stacklevel=2)
        return facts(experiment, data)

    monkeypatch.setattr(engine, "data_sizes", warned)
    checked = check_data(grid(), "space.yaml")
    expected = [f"{sampler['name']} of {size}" for sampler in SAMPLERS for size in SIZES]
    assert [note for note in checked.notes if note in expected] == expected


def test_a_setting_that_does_not_fit_its_data_is_named():
    experiments = grid()
    changes = {"train": experiments[4].train.model_copy(update={"batch_size": 256})}
    experiments[4] = experiments[4].model_copy(update=changes)
    with pytest.raises(ConfigError, match=r"space.yaml: experiment.train.batch_size: 256 is above the 225 training"):
        check_data(experiments, "space.yaml")
