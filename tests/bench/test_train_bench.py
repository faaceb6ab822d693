"""``mbcl bench train`` at toy size: real arms, the report's figures, and its checks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mbcl.bench.bare_step import BareStep
from mbcl.bench.train import TrainBenchReport, bench_train, in_own_process, measure_arms
from mbcl.bench.train_arms import run_arm
from mbcl.bench.train_run import ArmRun
from mbcl.bench.train_settings import ARMS, Arm, TrainBenchSettings, random_images
from mbcl.bench.usual_pipeline import lightly_is_installed
from mbcl.cli import main
from mbcl.cli.bench import LADDER
from mbcl.console.stages import Stages
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.errors import ConfigError, TrainingError
from mbcl.io.store import LocalStore

TOY = {
    "encoder": "resnet_small",
    "image_size": 8,
    "batch_size": 4,
    "samples": 13,
    "epochs": 2,
    "runs": 1,
    "arms": ("ceiling", "shuffle", "planned", "usual"),
    "samplers": ("osgd", "refined"),
    "threads": (1,),
    "workers": 0,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "seed": 3,
}
OPTIONS = "--image-size 8 --batch-size 4 --samples 13 --epochs 1 --runs 1 --threads 1 --workers 0".split()


def settings_of(**changes) -> TrainBenchSettings:
    return TrainBenchSettings(**{**TOY, **changes})


def ladder(run, **changes) -> TrainBenchReport:
    settings = settings_of(**changes)
    settings.check()
    report = TrainBenchReport(settings)
    measure_arms(report, run, Stages(quiet=True), lambda report: None)
    return report


def run_of(speed: float) -> ArmRun:
    return ArmRun(speed, {"step": 12 / speed}, 10 * 2**20, None, 1.0)


@pytest.fixture(scope="module")
def measured() -> TrainBenchReport:
    """The ladder in this process; the planner of ``overlap: 1`` and a loader's worker are processes of their own."""
    return ladder(run_arm, workers=1)


def test_every_arm_trains_and_reports_its_stages(measured):
    stages = {report.arm.label: set(report.seconds) for report in measured.arms}
    planned = {"views", "step", "embed", "plan", "wait", "other"}
    assert stages == {
        "ceiling, contiguous, 1 thread": {"step"},
        "ceiling, channels_last, 1 thread": {"step"},
        "trainer, shuffle": {"views", "step", "other"},
        "trainer, osgd, fresh, overlap 0": planned,
        "trainer, osgd, fresh, overlap 1": planned,
        "trainer, osgd, fresh an epoch, overlap 0": planned,
        "trainer, osgd, fresh an epoch, overlap 1": planned,
        "trainer, refined, fresh, overlap 0": planned,
        "trainer, refined, fresh, overlap 1": planned,
        "trainer, refined, cached, overlap 0": planned,
        "trainer, refined, cached, overlap 1": planned,
        "usual pipeline, 1 worker, contiguous": {"step", "wait"},
        "usual pipeline, 1 worker, channels_last": {"step", "wait"},
    }
    for report in measured.arms:
        (run,) = report.runs
        assert 0 < run.loss < 2 * math.log(8) / 0.1, report.arm.label
        if report.arm.kind != "trainer":  # its seconds of a step are a difference of two measurements
            assert sum(report.seconds.values()) == pytest.approx(12 / run.samples_a_second)
            assert min(report.seconds.values()) >= 0


def test_helpers_count_the_memory_of_planner_and_loader(measured):
    """Other tests of this process may keep ranks of gloo alive, which count in every arm."""
    helpers = {report.arm.label: report.bytes("helpers") for report in measured.arms}
    overlapped = [report.arm.label for report in measured.arms if report.arm.overlap]
    assert overlapped
    for label in overlapped:
        assert helpers[label] > helpers[label.replace("overlap 1", "overlap 0")]
    assert helpers["usual pipeline, 1 worker, contiguous"] > helpers["trainer, shuffle"]


def test_report_has_medians_ratios_and_the_best_ceiling_as_reference():
    speeds = {"ceiling, contiguous, 1 thread": [80.0, 70.0, 90.0], "ceiling, channels_last, 1 thread": [60.0] * 3}
    speeds |= {"ceiling, contiguous, 2 threads": [99.0, 1.0, 1.0], "ceiling, channels_last, 2 threads": [100, 90, 110]}
    taken: list[str] = []

    def run(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
        taken.append(arm.label)
        if arm.kind != "ceiling":
            assert (arm.threads, arm.channels_last) == (2, True), "those of the best ceiling"
        return run_of(speeds.get(arm.label, [25.0, 50.0, 30.0])[taken.count(arm.label) - 1])

    report = ladder(run, runs=3, threads=(1, 2), arms=("ceiling", "shuffle"))
    assert set(taken[:4]) == set(speeds), "arms take turns"
    assert taken == taken[:4] * 3 + ["trainer, shuffle"] * 3
    assert report.reference is not None
    assert report.reference.arm.label == "ceiling, channels_last, 2 threads"
    record = report.record()
    assert record["reference"] == "ceiling, channels_last, 2 threads"
    (shuffle,) = (arm for arm in record["arms"] if arm["label"] == "trainer, shuffle")
    assert shuffle["samples_a_second"] == {"median": 30.0, "least": 25.0, "most": 50.0}
    assert shuffle["ratio"] == pytest.approx(0.3)
    assert shuffle["seconds"] == {"step": pytest.approx(0.4)}
    assert (shuffle["memory"], shuffle["helpers"]) == (10 * 2**20, None)
    assert {"torch", "torchvision", "processor"} <= set(record["environment"])


def test_arms_without_a_ceiling_have_no_ratio():
    report = ladder(lambda arm, settings: run_of(5.0), arms=("shuffle",), threads=(1, 2))
    (arm,) = report.record()["arms"]
    assert (arm["ratio"], arm["threads"], arm["channels_last"]) == (None, 2, "auto")


def test_lightly_is_left_out_with_a_line_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("mbcl.bench.train.lightly_is_installed", lambda: False)
    report = ladder(lambda arm, settings: run_of(5.0), arms=("shuffle", "lightly"))
    assert [arm.arm.label for arm in report.arms] == ["trainer, shuffle"]
    assert report.left_out == ["lightly left out: it is not installed; pip install lightly"]


@pytest.mark.skipif(not lightly_is_installed(), reason="lightly is not installed")
def test_lightly_arm_trains():
    (report,) = ladder(run_arm, arms=("lightly",), image_size=16).arms
    assert 0 < report.runs[0].loss < 100


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_bare_step_is_the_trainers_step(tmp_path, precision):
    settings = settings_of(precision=precision)
    (arm,) = settings.other_arms(channels_last=True, threads=1)[:1]
    experiment = settings.experiment(arm)
    learner = Trainer(experiment, world=World(), store=LocalStore(tmp_path)).learner
    bare = BareStep(experiment, torch.device("cpu"))
    views = bare.fixed_views(learner.images, 4, learner.seed)
    assert views.is_contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        expected = learner.step(torch.arange(4), epoch=0, lr=experiment.optimizer["lr"]).loss
        assert torch.equal(bare(views), expected)
    for name, weight in learner.model.state_dict().items():
        assert torch.equal(bare.model.state_dict()[name], weight), name


def test_random_images_depend_on_the_seed():
    images = random_images(6, 8, 1)
    assert torch.equal(images.images, random_images(6, 8, 1).images)
    assert not torch.equal(images.images, random_images(6, 8, 2).images)


def test_bench_train_prints_and_writes_the_arms(tmp_path, capsys):
    path = tmp_path / "new" / "train.json"
    line = ["bench", "train", *OPTIONS, "--arms", "ceiling", "--json", str(path)]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "images a second" in out
    assert "ratio: to ceiling" in out
    content = json.loads(path.read_text())
    assert [arm["label"] for arm in content["arms"]] == [
        "ceiling, contiguous, 1 thread",
        "ceiling, channels_last, 1 thread",
    ]
    assert max(arm["ratio"] for arm in content["arms"]) == 1
    assert all(arm["memory"] > 50e6 for arm in content["arms"])
    assert content["settings"]["samples"] == 13
    assert main(line) == 2
    assert "is there already; add --overwrite" in capsys.readouterr().err


def test_an_arm_that_fails_is_one_line():
    arm = Arm("no such kind", "a label", 1, False)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="^a label: KeyError: 'no such kind'$"):
        in_own_process(arm, settings_of())


def test_an_arm_that_fails_leaves_the_others_printed_and_written(tmp_path, capsys, monkeypatch):
    def run(arm: Arm, settings: TrainBenchSettings) -> ArmRun:
        if arm.kind == "usual":
            raise TrainingError("usual pipeline, 0 workers, contiguous: no memory")
        return run_of(5.0)

    monkeypatch.setattr("mbcl.bench.train.in_own_process", run)
    path = tmp_path / "train.json"
    assert main(["bench", "train", *OPTIONS, "--arms", "shuffle", "usual", "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert "trainer, shuffle  " in captured.out
    assert captured.err.endswith("error: usual pipeline, 0 workers, contiguous: no memory\n")
    assert [arm["label"] for arm in json.loads(path.read_text())["arms"]] == ["trainer, shuffle"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--encoder resnet_smal", "encoder: unknown encoder 'resnet_smal'; did you mean 'resnet_small'"),
        ("--encoder resnet_small:depth=3", "encoder.depth: unknown key"),
        ("--encoder resnet_small:blocks", "--encoder resnet_small:blocks: expected NAME"),
        ("--encoder alexnet", "--encoder alexnet: encoder: alexnet cannot take images of 3 x 8 x 8"),
        ("--image-size 7", "--image-size must be a whole number >= 8, found 7"),
        ("--image-size 2000", "--image-size must be at most 1024, found 2000"),
        ("--batch-size 1", "--batch-size must be"),
        ("--samples 3", "--samples must be a whole number >= 4, found 3"),
        ("--epochs 0", "--epochs must be"),
        ("--runs 0", "--runs must be"),
        ("--threads 0", "--threads must be"),
        ("--threads 1 1", "--threads: each once"),
        ("--workers -1", "--workers must be"),
        ("--seed -1", "--seed must be"),
        ("--arms cieling", "--arms: unknown 'cieling'; did you mean 'ceiling'"),
        ("--arms shuffle shuffle", "--arms: each once"),
        ("--samplers spectrul", "--samplers spectrul: unknown sampler 'spectrul'; did you mean 'spectral'"),
        ("--samplers spectral:k=-1", "sampler: k must be"),
        ("--samplers osgd:k=9,q=1", "--samplers: osgd: "),
        ("--samplers shuffle --arms planned", "planned needs a sampler that uses embeddings"),
        ("--precision int8", "invalid choice: 'int8'"),
        ("--json {tmp}/", "--json: expected a file"),
        ("--json /proc/none/train.json", "--json: /proc/none cannot be written"),
    ],
)
def test_bench_train_refuses_bad_options_in_one_line(options, expected, tmp_path, capsys):
    try:
        code = main(["bench", "train", *OPTIONS, *options.format(tmp=tmp_path).split()])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: "))
    assert expected in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bench_train_reports_a_missing_gpu():
    with pytest.raises(ConfigError, match="torch finds no GPU here"):
        bench_train(settings_of(device="cuda"))


def test_the_ladder_imports_no_ray():
    folder = Path(__file__).parents[2] / "mbcl" / "bench"
    assert all("import ray" not in path.read_text() for path in folder.glob("*.py"))
    assert ARMS == LADDER
