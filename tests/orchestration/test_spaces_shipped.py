"""Every space that ships expands, passes a dry run, and runs when shrunk to one trial as its header says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from data.installed import install, write_functions
from data.official import write_cifar, write_fashion_mnist, write_tiny_imagenet

from mbcl.io.store import LocalStore
from mbcl.optim import scale_lr
from mbcl.orchestration.results_folder.layout import create, new_study
from mbcl.orchestration.search_space.expansion import Trials, expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.study_options import StudyOptions

from .helpers import ROOT, run_study

pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore:(cifar|tiny_imagenet)")

SPACES = ROOT / "tune_spaces"
TRIALS = {
    "digits": 24,
    "fashion_mnist": 9,
    "kq": 114,
    "objectives": 45,
    "paper_cifar100": 18,
    "paper_tiny_imagenet": 18,
    "samplers": 56,
    "search": 54,
    "synthetic": 200,
}
SHORT = ("kq", "objectives", "paper_cifar100", "paper_tiny_imagenet", "samplers", "search")
"""The header of each has a command that shrinks it to one trial."""
LONG = ("kq", "objectives", "paper_cifar100", "paper_tiny_imagenet", "samplers", "search")
"""Their shrunk form tests nothing that another does not, so it runs with the slow tests."""
PAPER = {"paper_cifar100": 49_000, "paper_tiny_imagenet": 98_000}
"""Training images after the validation split."""


def shrink_options(name: str) -> list[str]:
    """The options of the command in a space's header that shrinks it, without its name."""
    lines = iter((SPACES / f"{name}.yaml").read_text().splitlines())
    command = next(line for line in lines if line.startswith("#   python run_ray.py"))[1:]
    while command.endswith("\\"):
        command = command[:-1] + next(lines)[1:]
    arguments = shlex.split(command)
    assert arguments[:5] == ["python", "run_ray.py", "--space", f"tune_spaces/{name}.yaml", "--name"]
    return arguments[6:]


@pytest.fixture
def few_packages(tmp_path, monkeypatch):
    """Make ``code_docs`` of a package of made-up functions instead of all that are installed."""
    write_functions(tmp_path / "site", 450)
    install(tmp_path / "site", tmp_path / "cache", monkeypatch)


def small_data_options(name: str, root: Path) -> list[str]:
    """Write a small set in the official format if a space needs files; returns the options that point to it."""
    if name == "fashion_mnist":
        write_fashion_mnist(root, num_train=6000)  # as many as osgd needs
    elif name == "paper_cifar100":
        write_cifar(root, num_train=220, num_test=40)
    elif name == "paper_tiny_imagenet":
        write_tiny_imagenet(root, num_train=70, num_val=40)
    else:
        return []
    return ["--set", f"experiment.data.dir={root}"]


def test_spaces_shipped_are_all_tested():
    assert sorted(path.stem for path in SPACES.glob("*.yaml")) == sorted(TRIALS)


@pytest.mark.usefixtures("few_packages")
@pytest.mark.parametrize("name", TRIALS)
def test_space_has_a_question_and_expands(name):
    path = SPACES / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    file = read_space(path)
    assert file.space.name == name
    assert file.space.question.endswith("?")
    assert expand(file).total == TRIALS[name]


@pytest.mark.parametrize("name", SHORT)
def test_space_header_names_the_cost_and_a_command_for_one_trial(name):
    assert "GPU: not measured" in (SPACES / f"{name}.yaml").read_text()
    overrides = [word for word in shrink_options(name) if word != "--set"]
    trials = expand(read_space(SPACES / f"{name}.yaml", overrides))
    assert trials.total == 1
    assert {spec.experiment.train.epochs for spec in (*trials.specs, *trials.probes)} == {1}


@pytest.mark.usefixtures("few_packages")
@pytest.mark.parametrize("name", TRIALS)
def test_space_passes_a_dry_run(name, tmp_path, capsys):
    """The spaces of the paper are checked in their shrunk form, without its data and GPU."""
    import run_ray

    shrunk = shrink_options(name) if name in PAPER else []
    options = [*shrunk, *small_data_options(name, tmp_path), "--results-dir", str(tmp_path / "out")]
    assert run_ray.main(["--space", str(SPACES / f"{name}.yaml"), "--dry-run", *options]) == 0, capsys.readouterr().err
    assert f"{1 if shrunk else TRIALS[name]} trial" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER)
def test_paper_spaces_have_the_published_settings(name):
    for spec in expand(read_space(SPACES / f"{name}.yaml")).specs:
        experiment, sampler = spec.experiment, spec.experiment.build_sampler()
        total = round(PAPER[name] / (1 - experiment.data.validation))
        assert total - round(total * experiment.data.validation) == PAPER[name]
        sampler.check(PAPER[name])
        expected = {"shuffle": PAPER[name] // 32, "osgd": 150 * (total // 48_000), "spectral": PAPER[name] // 32}
        assert sampler.plan_length(PAPER[name]) == expected[sampler.name]
        assert experiment.data.image_size == 224
        assert experiment.projector.model_dump(exclude={"activation"}) == {"layers": 2, "hidden": 2048, "dim": 128}
        assert experiment.encoder == {"name": "resnet18", "stem": "imagenet", "zero_init": True, "weights": None}
        assert experiment.objective.get("first_touch", "batch") == "batch"
        assert (experiment.train.epochs, experiment.train.precision) == (100, "fp16")
        lr = scale_lr(experiment.optimizer["lr"], batch_size=32, rule=experiment.schedule.scale_lr)
        assert lr == pytest.approx(0.075 * np.sqrt(32))


@pytest.mark.ray
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SHORT],
)
def test_space_shrunk_to_one_trial_runs(name, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    options = [*shrink_options(name), *small_data_options(name, data), "--name", "short"]
    result = run_study(SPACES / f"{name}.yaml", tmp_path / "out", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "out" / "short"
    (trial,) = json.loads((folder / "study.json").read_text())["trials"].values()
    assert trial["status"] == "finished"
    assert 0 <= trial["metrics"]["retrieval/u2v/top1"] <= 1
    assert trial["metrics"]["plan/lift"] > 0
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize("name", TRIALS)
def test_the_stored_space_of_a_study_is_the_space_that_it_ran(name, tmp_path):
    file = read_space(SPACES / f"{name}.yaml", ["equivalence=0.03"])
    store = LocalStore(tmp_path / "ran")
    nothing = Trials((), (), 0)
    create(store, file, nothing, new_study(file, nothing, name))
    stored = Path(store.uri) / "space.yaml"
    assert read_space(stored).space == file.space
    assert read_space(stored, ["equivalence=0.02"]).space.equivalence == 0.02
    assert StudyOptions(stored).folder == "ran-again"
    assert StudyOptions(stored, name="ran").folder == "ran"
