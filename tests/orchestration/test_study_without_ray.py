"""Studies that end before Ray starts: dry runs, bad input, existing results."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys

import pytest

from mbcl.io.store import LocalStore
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.study.record import read_study

from .helpers import ROOT, errors_in

pytest.importorskip("ray")


def test_dry_run_lists_all_trials_and_imports_no_ray(space_file, tmp_path):
    code = (
        "import sys, run_ray\n"
        f"options = ['--space', {str(space_file())!r}, '--results-dir', {str(tmp_path / 'out')!r}]\n"
        "code = run_ray.main([*options, '--dry-run'])\n"
        "assert 'ray' not in sys.modules, 'Ray was loaded'\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for spec in expand(read_space(space_file())).specs:
        assert spec.trial_id in result.stdout
    shared = "mix: 0.0, skip: 0, relative_margin: null, absolute_margin: null, community: null, order: random"
    assert f"sampler = {{name: spectral, {shared}, k: 4, temperature: 0.1}}" in result.stdout
    assert re.search(r"^2 trials, \d at a time", result.stdout, re.M)
    assert "1 worker with" in result.stdout
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


@pytest.mark.parametrize("what", ["batch size", "osgd", "folder", "no channels", "stem", "small images"])
def test_dry_run_refuses_what_a_run_refuses(space_file, tmp_path, what, capsys):
    import run_ray

    changes, _, words = BAD[what]
    arguments = ["--space", str(space_file(changes)), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_dry_run_refuses_an_unwritable_folder(space_file, capsys):
    import run_ray

    assert run_ray.main(["--space", str(space_file()), "--results-dir", "/proc/nowhere", "--dry-run"]) == 2
    assert "--results-dir: /proc/nowhere/study cannot be written" in capsys.readouterr().err


def test_dry_run_refuses_existing_results_and_lists_what_resume_would_run(space_file, tmp_path, capsys):
    import run_ray
    from mbcl.orchestration.results_folder.layout import create, new_study
    from mbcl.study.record import write_study

    file = read_space(space_file())
    trials, store = expand(file), LocalStore(tmp_path / "out" / "study")
    study = new_study(file, trials, "study")
    create(store, file, trials, study)
    done, missing = study.trials
    study.trials[done].status = "finished"
    write_study(store, study)
    arguments = ["--space", str(file.path), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    own = ["--space", str(tmp_path / "out" / "study" / "space.yaml"), *arguments[2:]]
    assert run_ray.main(own) == 0
    assert "2 trials" in (out := capsys.readouterr().out)
    assert "study-again" in out
    before = sorted(tmp_path.rglob("*"))
    assert run_ray.main([*arguments, "--resume"]) == 0
    out = capsys.readouterr().out
    assert missing in out
    assert done not in out
    assert re.search(r"^1 of 2 trials, \d at a time", out, re.M)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore")
def test_dry_run_prints_a_sampler_warning_as_one_note(space_file, tmp_path, capfd):
    import run_ray

    changes = {"seeds": [0, 1], "space/sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 400}]}}
    arguments = ["--space", str(space_file(changes)), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(arguments) == 0
    captured = capfd.readouterr()
    assert captured.out.count("note: sampler 'spectral': k * batch_size = 400 * 16 is above") == 1
    assert "Warning" not in captured.err


def test_run_ray_refuses_an_unknown_option_in_one_line(capsys):
    import run_ray

    with pytest.raises(SystemExit) as caught:
        run_ray.main(["--spaec", "x.yaml"])
    assert caught.value.code == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1


def test_run_ray_help_imports_no_torch():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "run_ray.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "torch" not in result.stderr
    for flag in ("--space", "--name", "--results-dir", "--set", "--resume", "--eval-only", "--dry-run", "--address"):
        assert flag in result.stdout


BAD = {
    "no such file": ({}, ["--space", "none.yaml"], "none.yaml: cannot be read"),
    "override": ({}, ["--set", "experiment.train.epohcs=1"], "experiment.train.epohcs: unknown key"),
    "name": ({}, ["--name", "../x"], "--name: found '../x'"),
    "no name": ({}, ["--name", ""], "--name: found ''"),
    "no address": ({}, ["--address", ""], "--address: found an empty text; allowed: auto, or HOST:PORT"),
    "batch size": ({"experiment/train/batch_size": 400}, [], "train.batch_size"),
    "osgd": ({"space/sampler": {"grid": [{"name": "osgd", "k": 200, "q": 5}]}, "baseline": {}}, [], "k * batch_size"),
    "folder": ({"experiment/data": {"name": "fashion_mnist", "dir": "/nowhere"}}, [], "/nowhere"),
    "no channels": ({"experiment/encoder": {"name": "resnet_small", "widths": [0]}}, [], "experiment.encoder: "),
    "stem": ({"experiment/encoder": {"name": "vgg11", "stem": "small"}}, [], "experiment.encoder: "),
    "small images": ({"experiment/encoder": {"name": "vgg11"}}, [], "vgg11 cannot take images of 1 x 8 x 8"),
    "workers": ({"resources": {"workers": 16}}, [], "resources.workers: 16 workers need"),
    "gpu": ({"resources": {"gpu": True}}, [], "GPU"),
    "scheduler": ({"scheduler": {"name": "asha", "grace": 2}}, [], "scheduler.grace: unknown key; known: grace_period"),
    "searcher": ({"search": {"name": "optuna", "sampler": "tpe"}}, [], "search.sampler: unknown key"),
    "nothing to draw": ({"search": {"name": "optuna", "num_samples": 4}}, [], "there is nothing to draw"),
    "an end of a domain": (
        {
            "space/sampler": {"grid": [{"name": "osgd", "k": {"randint": [4, 200]}, "q": 2}]},
            "search": {"name": "optuna"},
            "baseline": {},
        },
        [],
        "k * batch_size",
    ),
    "drawn": ({"space/optimizer.lr": {"loguniform": [0, 1]}}, [], "loguniform: expected [a, b] with a above 0"),
    "a path that is too long": ({}, ["--results-dir", f"/tmp/{'x' * 260}"], "File name too long"),
    "memory": ({}, ["--results-dir", "mock://x"], "mock://x: what is written there is kept in memory"),
    "no bucket": ({}, ["--results-dir", "s3://"], "found the URI s3://, which names no bucket"),
    "no storage": ({}, ["--results-dir", "s3://b/x?endpoint_override=127.0.0.1:1&scheme=http"], "NETWORK_CONNECTION"),
    "nothing to resume": ({}, ["--resume"], "--resume"),
    "nothing to evaluate": ({}, ["--eval-only"], "--eval-only"),
}


@pytest.mark.parametrize("what", BAD)
def test_run_ray_refuses_bad_input_in_one_line_before_ray(space_file, tmp_path, what, monkeypatch, capsys):
    import run_ray

    changes, options, words = BAD[what]
    if what == "gpu":
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setitem(
        sys.modules, "mbcl.orchestration.cluster.connection", None
    )  # importing it, and with it Ray, would fail
    arguments = ["--space", str(space_file(changes)), "--results-dir", str(tmp_path / "out"), *options]
    assert run_ray.main(arguments) == 2
    captured = capsys.readouterr()
    error = errors_in(captured.err)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert captured.out == ""


def test_dry_run_names_a_missing_search_package(space_file, tmp_path, monkeypatch, capsys):
    import run_ray

    changes = {"space/optimizer.lr": {"uniform": [0.1, 0.2]}, "search": {"name": "optuna", "num_samples": 2}}
    monkeypatch.setitem(sys.modules, "optuna", None)
    arguments = ["--space", str(space_file(changes)), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(arguments) == 2
    assert "optuna needs the package optuna, which is not installed: pip install 'mbcl[ray]'" in capsys.readouterr().err


def test_run_ray_names_a_missing_tracker_package_before_the_first_trial(space_file, tmp_path, monkeypatch, capsys):
    import run_ray

    monkeypatch.setitem(sys.modules, "wandb", None)
    space = space_file({"experiment/track": ["wandb"]})
    assert run_ray.main(["--space", str(space), "--results-dir", str(tmp_path / "out")]) == 2
    assert "experiment.track: wandb is not installed; pip install 'mbcl[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_describes_the_search(space_file, tmp_path, capsys):
    import run_ray

    changes = {
        "seeds": [0, 1],
        "space/optimizer.lr": {"loguniform": [0.01, 1.0]},
        "search": {"name": "optuna", "num_samples": 5},
        "scheduler": {"name": "median_stopping_rule", "min_samples_required": 4},
    }
    arguments = ["--space", str(space_file(changes)), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_ray.main(arguments) == 0
    out = capsys.readouterr().out
    assert "sampler: each of {name: shuffle}, {" in out
    assert "optimizer.lr: 0.01 to 1, evenly in its logarithm" in out
    assert "optuna proposes 5 settings for each of 2 points of the grids by val/retrieval/mrr (max)" in out
    assert (
        "median: from epoch 1 on, who is below the median of at least 4 others by val/retrieval/mrr is stopped" in out
    )
    assert "race on seed 0, those of each point of the grids by themselves; who survives runs seeds 1, too" in out
    assert "each 1 worker with" in out
    assert "at most 20 trials, " in out
    assert " at a time (" in out


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"name": "asha", "max_t": 1}, "max_t 1 is below the 2 epochs: all end there, none finishes"),
        ({"name": "median", "grace_period": 2}, "grace_period 2 is no less than the 2 epochs: nobody is stopped"),
    ],
)
def test_dry_run_notes_a_scheduler_that_stops_all_or_none(space_file, tmp_path, scheduler, words, capsys):
    import run_ray

    space = space_file({"scheduler": scheduler})
    assert run_ray.main(["--space", str(space), "--results-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    assert words in capsys.readouterr().out


def test_dry_run_notes_a_metric_measured_at_the_end_only(space_file, tmp_path, capsys):
    import run_ray

    for eval_every, noted in ((2, True), (1, False)):
        space = space_file({"scheduler": {"name": "asha"}, "experiment/train/eval_every": eval_every})
        assert run_ray.main(["--space", str(space), "--results-dir", str(tmp_path / "out"), "--dry-run"]) == 0
        words = "train.eval_every 2 is no less than the 2 epochs: the metric is measured at the end alone"
        assert (words in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    ("seeds", "status", "words"),
    [
        ([0, 1], "pending", "interrupted, 4 trials are missing; go on with: python"),
        ([0], "finished", "interrupted; no trial is missing\n"),
    ],
)
def test_run_ray_interrupted_counts_the_missing_trials(space_file, tmp_path, seeds, status, words, capsys, monkeypatch):
    import run_ray
    from mbcl.orchestration import signals
    from mbcl.orchestration.tune import on_ray

    def interrupted(study_run, *more):
        for record in study_run.study.record.trials.values():
            record.status = status
        raise KeyboardInterrupt

    monkeypatch.setattr(on_ray, "run_on_ray", interrupted)
    monkeypatch.setattr(signals, "ignore_signals", lambda: None)
    space = space_file({"seeds": seeds})
    assert run_ray.main(["--space", str(space), "--results-dir", str(tmp_path / "out")]) == 130
    assert words in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_run_ray_refuses_a_name_with_results(space_file, tmp_path, capsys):
    import run_ray

    (tmp_path / "out" / "study").mkdir(parents=True)
    (tmp_path / "out" / "study" / "study.json").write_text("{}")
    assert run_ray.main(["--space", str(space_file()), "--results-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--name" in error


def test_run_ray_rolls_back_when_the_cluster_refuses(space_file, tmp_path, capsys, monkeypatch):
    import run_ray
    from mbcl.errors import ConfigError
    from mbcl.orchestration.tune import on_ray

    def refuse(*arguments):
        raise ConfigError("resources: too much")

    monkeypatch.setattr(on_ray, "run_on_ray", refuse)
    arguments = ["--space", str(space_file()), "--results-dir", str(tmp_path / "out")]
    for _ in range(2):
        assert run_ray.main(arguments) == 2
        assert errors_in(capsys.readouterr().err) == "error: resources: too much\n"
    assert not list((tmp_path / "out" / "study").glob("*.*ml")) + list((tmp_path / "out" / "study").glob("*.json"))


def test_run_ray_reports_a_full_disk_at_the_start_as_bad_input(space_file, tmp_path, capsys, monkeypatch):
    import run_ray
    from mbcl.orchestration.results_folder import layout

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "create", full)
    assert run_ray.main(["--space", str(space_file()), "--results-dir", str(tmp_path / "out")]) == 2
    assert errors_in(capsys.readouterr().err) == f"error: {tmp_path}/out/study: No space left on device\n"
    assert not list((tmp_path / "out" / "study").glob("[!.]*"))


@pytest.mark.parametrize("kind", ["ConnectionError", "BrokenPipeError", "GetTimeoutError"])
def test_run_ray_reports_the_loss_of_ray_and_how_to_resume(space_file, tmp_path, kind, capsys, monkeypatch):
    import ray.exceptions

    import run_ray
    from mbcl.orchestration.tune import on_ray

    def lose(*arguments):
        raise (getattr(ray.exceptions, kind, None) or getattr(builtins, kind))("no answer")

    monkeypatch.setattr(on_ray, "_run_connected", lose)
    arguments = ["--space", str(space_file()), "--results-dir", str(tmp_path / "out")]
    assert run_ray.main(arguments) == 1
    error = errors_in(capsys.readouterr().err)
    assert error.startswith(f"error: Ray was lost: {kind}")
    assert "; go on with: python run_ray.py" in error
    assert (tmp_path / "out" / "study" / "study.json").exists(), "the study can go on"


def run_with_closed_stdout(code: str) -> tuple[int, str]:
    """The exit code and stderr of a process whose stdout is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nowhere:
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=nowhere, stderr=subprocess.PIPE, text=True
        )
    return result.returncode, errors_in(result.stderr)


def test_run_ray_with_closed_stdout_is_interrupted_and_can_resume(space_file, tmp_path):
    arguments = ["--space", str(space_file()), "--results-dir", str(tmp_path / "out")]
    code = (
        "import run_ray\n"
        "from mbcl.orchestration.tune import on_ray\n"
        "on_ray.run_on_ray = lambda run, *more: [run.console.log('a line') for _ in range(9)] and {}\n"
        f"run_ray.leave(run_ray.main({arguments!r}))\n"
    )
    code, error = run_with_closed_stdout(code)
    assert code == 130, error
    assert error.startswith("error: interrupted, 2 trials are missing; go on with: python run_ray.py")
    assert error.count("\n") == 1
    study = read_study(LocalStore(tmp_path / "out" / "study"))
    assert {record.status for record in study.trials.values()} == {"pending"}
    assert (tmp_path / "out" / "study" / "report.html").exists()


def test_dry_run_with_closed_stdout_prints_no_error(space_file, tmp_path):
    arguments = ["--space", str(space_file()), "--results-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_with_closed_stdout(f"import run_ray; run_ray.leave(run_ray.main({arguments!r}))") == (0, "")


def test_study_interrupted_before_its_first_trial_survives_a_report_that_cannot_be_written(
    space_file, tmp_path, capsys, monkeypatch
):
    from mbcl.orchestration import signals, study
    from mbcl.orchestration.study_options import StudyOptions
    from mbcl.orchestration.tune import on_ray

    def interrupt(*arguments):
        raise KeyboardInterrupt

    def fill_the_disk(store, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_ray, "run_on_ray", interrupt)
    monkeypatch.setattr(signals, "ignore_signals", lambda: None)
    options = StudyOptions(space=space_file(), results_dir=str(tmp_path / "out"))
    assert study.run(options, fill_the_disk) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "out" / "study" / "study.json").exists(), "--resume goes on"


def test_study_whose_table_cannot_be_printed_failed(space_file, tmp_path, capsys, monkeypatch):
    from mbcl.orchestration import signals, study
    from mbcl.orchestration.console import Console
    from mbcl.orchestration.study_options import StudyOptions
    from mbcl.orchestration.tune import on_ray

    def finish(study_run, *more):
        study_run.study.has_begun = True
        return {}

    def fill_the_disk(console):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_ray, "run_on_ray", finish)
    monkeypatch.setattr(signals, "ignore_signals", lambda: None)
    monkeypatch.setattr(Console, "print_table", fill_the_disk)
    options = StudyOptions(space=space_file(), results_dir=str(tmp_path / "out"))
    assert study.run(options, lambda store, record: "") == 1
    assert "go on with: python run_ray.py" in capsys.readouterr().err


def test_setting_that_the_cluster_cannot_run_ends_the_study_before_its_first_trial(
    space_file, tmp_path, capsys, monkeypatch
):
    """27 samples are no batch of two workers, and three do not fit: found when the cluster's size is known."""
    from contextlib import contextmanager

    from mbcl.orchestration import signals, study
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import ClusterInfo
    from mbcl.orchestration.study_options import StudyOptions
    from mbcl.orchestration.tune import on_ray, run_trials

    @contextmanager
    def two_cpus(address, nodes, **options):
        yield ClusterInfo([Node(2)])

    def fail(*arguments, **options):
        raise AssertionError("a trial runs")

    monkeypatch.setattr(on_ray, "cluster", two_cpus)
    monkeypatch.setattr(run_trials, "run_trials", fail)
    monkeypatch.setattr(study, "this_machine", lambda: [Node(2)])
    monkeypatch.setattr(signals, "ignore_signals", lambda: None)
    space = space_file(
        {
            "space": {"train.batch_size": {"grid": [16, 27]}},
            "resources": {"workers": {"min": 2, "max": 3}, "cpus_per_worker": 0.9},
        }
    )
    options = StudyOptions(space=space, results_dir=str(tmp_path / "out"))
    assert study.run(options, lambda store, record: "") == 2
    assert "resources.workers" in capsys.readouterr().err
    assert not (tmp_path / "out" / "study" / "study.json").exists(), "rolled back"


def test_dry_run_names_what_is_missing_here_and_lists_the_trials(tmp_path, monkeypatch, capsys):
    import run_ray

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    space = str(ROOT / "tune_spaces" / "paper_cifar100.yaml")
    arguments = ["--space", space, "--results-dir", str(tmp_path), "--set", "data.dir=/nowhere", "--dry-run"]
    assert run_ray.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out.count("seed 0  objective = ") == 6
    assert "\n18 trials, each the resources that are there, into" in captured.out
    assert "error: missing here: resources: found gpu: true and workers: 1, which need 1 GPU; there are" in captured.err
    assert "error: missing here: " in captured.err
    assert "/nowhere" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_overrides_name_keys_of_the_experiment_as_mbcl_train_does(space_file):
    with_block = read_space(space_file(), ["experiment.train.epochs=7", "experiment.data.max_samples=100"])
    assert read_space(space_file(), ["train.epochs=7", "data.max_samples=100"]).space == with_block.space
    assert read_space(space_file(), ["seeds=[5]"]).space.seeds == [5]
