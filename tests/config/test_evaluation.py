"""The evaluation block: defaults, its own checks, and checks against the data."""

from __future__ import annotations

from typing import Any

import pytest
from engine import runs

from mbcl.config.base import validate
from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.setup import load_data
from mbcl.errors import ConfigError


def test_evaluation_measures_retrieval_by_default():
    settings = validate(Experiment, {}, "x").evaluation
    assert (settings.metrics, settings.baselines, settings.split) == (["retrieval"], [], "test")
    assert settings.similarity == "cosine"


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"metrics": ["knn"], "split": "train"}, "evaluation.split: found train, the images that knn is fitted on"),
        ({"metrics": ["probe", "probe"]}, "evaluation.metrics: 'probe' is given twice"),
        ({"baselines": ["noise"]}, "evaluation.baselines.0: "),
        ({"knn": {"weights": 3}}, "evaluation.knn.weights: unknown key; did you mean 'weighting'?"),
        ({"knn": {"k": 0}}, "evaluation.knn.k: "),
        ({"draws": 0}, "evaluation.draws: "),
        ({"draws": 1001}, "evaluation.draws: "),
        ({"validation_draws": 1001}, "evaluation.validation_draws: "),
        ({"probe": {"penalties": []}}, "evaluation.probe.penalties: "),
        ({"probe": {"penalties": [0.0]}}, "evaluation.probe.penalties.0: "),
        ({"corrupted": {"severities": [0]}}, "evaluation.corrupted.severities.0: "),
        ({"corrupted": {"severities": [2, 2]}}, "evaluation.corrupted.severities: 2 is given twice"),
        ({"corrupted": {"corruptions": ["fogg"]}}, "corruptions: unknown corruption 'fogg'; did you mean 'fog'?"),
        ({"corrupted": {"corruptions": ["fog"]}}, "found only 'fog', but meaning within tells corruptions apart"),
        (
            {"metrics": ["corrupted"], "split": "validation", "corrupted": {"dir": "x"}},
            "evaluation.corrupted.dir: official corrupted sets are of the test images, but split is validation",
        ),
    ],
)
def test_evaluation_refuses_bad_settings_in_one_line(block: dict[str, Any], text: str):
    with pytest.raises(ConfigError) as caught:
        validate(Experiment, {"evaluation": block}, "x")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_evaluation_takes_published_retrieval_on_training_images():
    assert validate(Evaluation, {"split": "train", "similarity": "dot"}, "x").split == "train"


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"metrics": ["knn"], "knn": {"k": 181}}, "evaluation.knn.k: 181 is above the 180 training images of digits"),
        ({"metrics": ["probe"]}, "evaluation.metrics: probe needs 2 classes"),
        ({"metrics": ["corrupted"], "corrupted": {"dir": "/nowhere"}}, "evaluation.corrupted.dir: "),
    ],
)
def test_check_evaluation_refuses_settings_that_do_not_fit_the_data(block: dict[str, Any], text: str):
    data = load_data(runs.experiment().data, seed=0)
    data.train.labels[:] = 4
    with pytest.raises(ConfigError) as caught:
        check_evaluation(validate(Evaluation, block, "x"), data, name="digits")
    assert text in str(caught.value)


def test_train_refuses_an_impossible_evaluation_before_it_starts(tmp_path):
    content = runs.experiment(evaluation={"metrics": ["knn"], "knn": {"k": 500}})
    with pytest.raises(ConfigError, match="evaluation.knn.k: 500 is above the 180 training images"):
        runs.run(runs.World(), tmp_path, content)
    assert not list(tmp_path.iterdir())
