"""The command ``mbcl``: output, exit codes, errors in one line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import wait_for

from mbcl.cli import main
from mbcl.cli.app import _keys
from mbcl.config.base import parameters_model
from mbcl.config.components import COMPONENTS, registry_of
from mbcl.config.yaml_reader import read_yaml

TINY = ["--set", "data.max_samples=80", "--set", "train={epochs: 2, batch_size: 16}", "--set", "track=[]"]


@pytest.fixture
def trained(tmp_path):
    assert main(["train", *TINY, "--out", str(tmp_path / "t"), "--quiet"]) == 0
    return tmp_path / "t"


def test_train_prints_a_line_an_epoch_and_writes_its_files(tmp_path, capsys):
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "epoch 1/2  loss " in out
    assert f"2 epochs; checkpoint {tmp_path}/checkpoints/epoch_000002" in out
    files = ["batches.json", "checkpoints", "config.yaml", "metrics.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    assert "num_train: 72" in (tmp_path / "config.yaml").read_text()


def test_train_with_a_written_config_repeats_the_training(trained, tmp_path):
    assert main(["train", "--config", str(trained / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    first, repeated = (
        json.loads((p / "metrics.jsonl").read_text().splitlines()[-1]) for p in (trained, tmp_path / "again")
    )
    assert first["train/loss"] == repeated["train/loss"]


def test_evaluate_prints_and_writes_the_metrics(trained, capsys):
    assert main(["evaluate", "--checkpoint", str(trained)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics) == {"retrieval/mrr", "retrieval/top1"} | {
        f"retrieval/{direction}/{key}"
        for direction in ("u2v", "v2u")
        for key in ("top1", "top5", "top10", "mrr", "mean_rank", "median_rank")
    }
    assert json.loads((trained / "evaluation.json").read_text())["metrics"] == metrics


def test_evaluate_accepts_one_checkpoint_and_other_settings(trained, capsys):
    assert main(["evaluate", "--checkpoint", f"{trained}/checkpoints/epoch_000001", "--set", "split=validation"]) == 0
    request = json.loads((trained / "evaluation.json").read_text())["asked"]
    assert request["checkpoint"] == "epoch_000001"
    assert request["settings"]["split"] == "validation"


def test_export_refuses_an_unwritable_folder(trained, capsys):
    assert main(["export", "--checkpoint", str(trained), "--out", "/proc/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: --out: /proc/nowhere cannot be written")


def test_train_refuses_an_existing_training_without_resume(trained, capsys):
    assert main(["train", *TINY, "--out", str(trained)]) == 2
    assert "holds a training already; add --resume" in capsys.readouterr().err
    assert main(["train", *TINY, "--out", str(trained), "--resume", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--set", "train.epoch=1"], "train.epoch: unknown key; did you mean 'epochs'?"),
        (["train", "--set", "train.batch_size=5000"], "train.batch_size: 5000 is above the 1294 training samples"),
        (["train", "--set", "sampler={name: osgd}"], "1500 * 32 = 48000 is above the 1294 samples"),
        (["train", "--config", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["train", "--set", "data={name: fashion_mnist, dir: none}"], "none"),
        (
            ["train", "--set", "encoder={name: vit_b_16}"],
            "vit_b_16 cannot take images of 1 x 8 x 8: Wrong image height",
        ),
        (["evaluate", "--checkpoint", "none"], "none: no such folder"),
        (["report", "--results", "none"], "holds no study.json"),
        (["list", "samplrs"], "invalid choice"),
        (["train", "--set", "seed=[2024"], "not YAML"),
        (["train", "--set", "train.epochs=1", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["trian"], "invalid choice"),
        ([], "required"),
    ],
)
def test_main_refuses_bad_input_in_one_line_with_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as exited:
        code = exited.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_train_exits_with_1_when_the_loss_is_nan(tmp_path, capsys):
    wild = ["--set", "optimizer={name: sgd, lr: 1.0e+30}", "--set", "schedule={warmup_epochs: 0}"]
    assert main(["train", *TINY, *wild, "--out", str(tmp_path), "--quiet"]) == 1
    assert "error: the loss is nan" in capsys.readouterr().err


def test_list_names_every_component(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (
        "shuffle",
        "osgd(",
        "k=1500, q=150",
        "also sc_even_kb_loose",
        "simclr(temperature=0.1)",
        "lars(",
        "digits",
    ):
        assert name in out
    assert main(["list", "samplers"]) == 0
    assert "simclr" not in capsys.readouterr().out


def test_list_explains_the_parameters_of_one_component(capsys):
    assert main(["list", "samplers", "sc_even_kb_loose"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("spectral(")
    assert "    k: " in out
    assert main(["list", "encoders", "resnet_small"]) == 0
    assert "    weights: file of its initial weights" in capsys.readouterr().out
    for wrong in (["list", "samplers", "spektral"], ["list", "datasets", "digits"]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "kind", "canonical"),
    [
        ("sc_even_kb_loose", "sampler", "spectral"),
        ("sog", "objective", "sogclr"),
        ("lars", "optimizer", "lars"),
        ("resnet_small", "encoder", "resnet_small"),
        ("resnet18", "encoder", "resnet18"),
    ],
)
def test_explain_prints_what_list_prints(name, kind, canonical, capsys):
    assert main(["list", f"{kind}s", name]) == 0
    listed = capsys.readouterr().out
    assert main(["explain", name]) == 0
    assert capsys.readouterr().out == f"{kind} {listed}"
    assert listed.startswith(f"{canonical}(")


def test_explain_explains_all_names_in_their_order(capsys):
    texts = []
    for name in ("refined", "cifar10", "planner.overlap"):
        assert main(["explain", name]) == 0
        texts.append(capsys.readouterr().out)
    assert main(["explain", "refined", "cifar10", "planner.overlap"]) == 0
    assert capsys.readouterr().out == "\n".join(texts)
    assert main(["explain", "refined", "nothing"]) == 2
    assert capsys.readouterr().out == "", "a name that is unknown ends it before anything is printed"


def test_explain_says_when_which_rule_keeps_samples_apart(capsys):
    for name, expected in (("kmeans", 1), ("walk", 1), ("shuffle", 0), ("osgd_exhaustive", 0), ("simclr", 0)):
        assert main(["explain", name]) == 0
        out = capsys.readouterr().out
        assert out.count("When which:") == expected
        for word in ("relative_margin (0.05, say): ", "absolute_margin (0.1, say): ", "skip: similarities", "apart: "):
            assert out.count(f"    {word}") == expected


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", ["encoder resnet18(", "architecture resnet18 of torchvision", "    stem: imagenet as published"]),
        ("cifar10", ["data set cifar10: 50,000 + 10,000 photographs", "cifar-10-python.tar.gz"]),
        ("cifar10_c", ["corrupted test set cifar10_c, for evaluation: "]),
        ("planner.overlap", ["planner.overlap\n\n0: training waits", "allowed: 0, 1\ndefault: 0"]),
        ("experiment.planner.overlap", ["allowed: 0, 1\ndefault: 0"]),
        ("search.num_samples", ["allowed: whole number of at least 1\ndefault: 1"]),
        ("synthetic.steps", ["synthetic.steps\n\nSteps of the study."]),
        ("data.image_size", ["allowed: whole number from 4 to 1024, null\ndefault: null"]),
        ("precision", ["train.precision\n", "float32, float64, bf16, fp16"]),
        ("train.accumulation", ["train.accumulation.mode", "train.accumulation.chunk_size"]),
        (
            "mix",
            ["planner.schedule.mix\n", "sampler.mix, a parameter of", "spectral", "share of the places of each batch"],
        ),
        ("sampler.mix", ["sampler.mix, a parameter of"]),
        ("trust_coefficient", ["optimizer.trust_coefficient, a parameter of lars"]),
    ],
)
def test_explain_explains_data_sets_keys_and_parameters(name, parts, capsys):
    assert main(["explain", name]) == 0
    out = capsys.readouterr().out
    for part in parts:
        assert part in out


def test_explain_describes_every_key_and_parameter():
    """No key of a configuration and no parameter of a component of mbcl is without a description."""
    keys = _keys()
    assert len(keys) > 150
    assert [key.path for key in keys if not key.meaning] == []
    for part in COMPONENTS:
        registry = registry_of(part)
        for name in registry:
            if registry[name].__module__.startswith("mbcl."):
                model = parameters_model(
                    registry[name], frozenset({"batch_size", "num_samples", "params", "in_channels"})
                )
                assert [key for key, field in model.model_fields.items() if not field.description] == [], name


@pytest.mark.parametrize("command", [["list"], ["explain", "spectral"], ["explain", "refined"], ["explain", "dcl"]])
def test_output_in_ascii_replaces_characters(command):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-m", "mbcl", *command], env=environment, capture_output=True, check=True)
    run.stdout.decode("ascii")
    assert run.stderr == b""


def test_explain_refuses_an_unknown_name_with_the_nearest(capsys):
    assert main(["explain", "spektral"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'spectral'?" in err
    assert err.count("\n") == 1


def test_list_help_names_the_kinds_with_parameters(capsys):
    with pytest.raises(SystemExit):
        main(["list", "--help"])
    assert "only this sampler, objective, optimizer or encoder" in " ".join(capsys.readouterr().out.split())


def test_train_error_names_the_option_and_only_rank_0_prints_it(tmp_path, capsys, monkeypatch):
    for options, message in (
        (["--set", "planner.overlap=true"], "with --set planner.overlap=true: planner.overlap: expected 0 or 1"),
        (["--set", "sampler={name: full, k: 2}"], "sampler.k: unknown key; there is none"),
        (["--out", "/proc/nowhere"], "--out: /proc/nowhere cannot be written"),
    ):
        assert main(["train", *TINY, "--out", str(tmp_path / "t"), *options]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "--set", "planner.overlap=true"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_train_interrupted_prints_the_command_to_resume(tmp_path, signal_sent):
    out = tmp_path / "with a space"
    arguments = ["train", "--set", "train={epochs: 1000000, batch_size: 16}", "--set", "track=[]", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mbcl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for((out / "checkpoints").exists)
        process.send_signal(signal_sent)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    (line,) = (line for line in err.splitlines() if line.startswith("  mbcl "))
    assert shlex.split(line)[1:] == [*arguments, "--resume"], "the line can be pasted as it is"
    assert "Traceback" not in err


def test_main_prints_help_of_every_command(capsys):
    for command in ([], ["train"], ["evaluate"], ["report"], ["list"], ["explain"], ["completion"]):
        with pytest.raises(SystemExit) as exited:
            main([*command, "--help"])
        assert exited.value.code == 0
    assert "breakpoint" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_names(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("mbcl", "spectral", "sogclr", "fashion_mnist", "knn", "probe", "planner.overlap"):
        assert word in out


def test_the_name_of_a_component_stands_for_its_block(tmp_path):
    encoder = ["--set", "encoder=resnet_small", "--set", "encoder.widths=[8]", "--set", "sampler=sc_even", "--set"]
    assert main(["train", *TINY, *encoder, "sampler.k=2", "--out", str(tmp_path), "--quiet"]) == 0
    content = read_yaml(tmp_path / "config.yaml")
    assert content["encoder"]["widths"] == [8]
    assert (content["sampler"]["name"], content["sampler"]["k"]) == ("spectral", 2)


def test_train_under_torchrun_on_two_workers_equals_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mbcl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["train", *TINY, "--set", "train.precision=float64"]
    subprocess.run([*command, *options, "--out", str(tmp_path / "two")], check=True, env=environment)
    assert main([*options, "--out", str(tmp_path / "one"), "--quiet"]) == 0
    rows = [json.loads(Path(tmp_path, run, "metrics.jsonl").read_text().splitlines()[0]) for run in ("one", "two")]
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=1e-9)


@pytest.mark.dist
def test_an_interrupt_of_torchrun_alone_ends_all_ranks_with_the_line_that_resumes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mbcl"]
    options = ["train", "--set", "data.max_samples=80", "--set", "train={epochs: 100000, batch_size: 16}"]
    process = subprocess.Popen(
        [*command, *options, "--set", "track=[]", "--out", str(tmp_path / "two"), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for((tmp_path / "two" / "metrics.jsonl").exists)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode != 0
    assert "forcefully exiting" not in error, "torchrun kills ranks that do not end"
    assert error.count("interrupted; what is finished is kept. To go on:\n  torchrun --nproc-per-node 2 -m mbcl") == 1


def test_train_takes_keys_as_a_space_names_them_and_says_what_it_trains(tmp_path, capsys):
    overrides = [word.replace("data.", "experiment.data.").replace("train=", "experiment.train=") for word in TINY]
    assert main(["train", *overrides, "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(
        "training resnet_small on digits, simclr, batches of 16 by shuffle; 2 epochs, seed 0, 1 wor"
    )


def test_spaces_lists_and_copies_what_sweep_takes(tmp_path, capsys):
    assert main(["spaces"]) == 0
    listed = capsys.readouterr().out
    for path in Path("tune_spaces").glob("**/*.yaml"):
        assert path.stem in listed
    assert "Does choosing high-loss batches give better retrieval than random ones?" in listed
    assert main(["spaces", "samplers", "--out", str(tmp_path)]) == 0
    comment, *rest = (tmp_path / "samplers.yaml").read_text().splitlines()
    shipped = Path("tune_spaces/samplers.yaml").read_text()
    command = "python run_ray.py --space tune_spaces/samplers.yaml"
    assert command in shipped
    assert rest == shipped.replace(command, f"mbcl sweep --space {tmp_path}/samplers.yaml").splitlines()[1:]
    assert Path(comment.partition("$schema=")[2]).is_file()
    assert main(["spaces", "samplers", "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["spaces", "kq", "--out", str(tmp_path / "samplers.yaml")]) == 2
    assert "--out: " in capsys.readouterr().err
    assert main(["spaces", "study/hardness_digits", "--out", str(tmp_path)]) == 0
    study = (tmp_path / "hardness_digits.yaml").read_text()
    assert f"mbcl sweep --space {tmp_path}/hardness_digits.yaml" in study
    assert main(["spaces", "study/hardness_digits", "--out", str(tmp_path / "two words")]) == 0
    study = (tmp_path / "two words" / "hardness_digits.yaml").read_text()
    assert f"mbcl sweep --space '{tmp_path}/two words/hardness_digits.yaml'" in study
    assert "run_ray" not in study
    assert main(["spaces", "sampler"]) == 2
    assert "did you mean 'samplers'" in capsys.readouterr().err


def test_sweep_is_run_ray(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "mbcl", "sweep", "--space", "tune_spaces/digits.yaml", "--dry-run"]
    options = ["--results-dir", str(tmp_path), "--set", "train.epochs=2", "--set", "seeds=[0]"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "3 trials, " in result.stdout
    assert list(tmp_path.iterdir()) == []
