"""The command ``mbcl evaluate``."""

from __future__ import annotations

import json
import re

import pytest
from engine import runs

from mbcl.cli import main
from mbcl.config.base import apply_overrides, validate
from mbcl.config.evaluation import Corrupted, Evaluation, Neighbours, Probe
from mbcl.distributed.collectives import World
from mbcl.io.store import LocalStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    runs.run(World(), folder, runs.experiment(train={"epochs": 3, "batch_size": 16, "keep_checkpoints": 2}))
    # The best checkpoint is kept, too, and may be the first.
    LocalStore(folder).delete("checkpoints/epoch_000001")
    return folder


@pytest.fixture
def run_evaluate(trained, tmp_path, capsys):
    def run(*options: str) -> dict:
        assert main(["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path), *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_evaluate_flags_choose_the_metrics(run_evaluate, tmp_path):
    metrics = run_evaluate(
        "--metrics", "retrieval", "knn", "--corrupted", "--severity", "2", "--set", "corrupted.corruptions=[fog, snow]"
    )
    assert {"retrieval/u2v/top1", "knn/top1", "corrupted/within/2/u2v/top1", "corrupted/clean/snow/2/top1"} <= set(
        metrics
    )
    assert not [key for key in metrics if key.startswith("corrupted/") and "/2/" not in key]
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["metrics"] == metrics
    assert stored["asked"]["settings"]["metrics"] == ["retrieval", "knn", "corrupted"]


def test_evaluate_epochs_measures_each_checkpoint_once(run_evaluate, tmp_path):
    options = ["--epochs", "-1", "2", "3", "--metrics", "knn", "--baselines", "random"]
    metrics = run_evaluate(*options)
    assert list(metrics) == ["epoch_000000", "epoch_000002", "epoch_000003"]
    assert metrics["epoch_000000"]["knn/top1"] == metrics["epoch_000000"]["baseline/random/knn/top1"]
    files = sorted(tmp_path.glob("evaluations/*/evaluation.json"))
    assert [json.loads(file.read_text())["metrics"] for file in files] == list(metrics.values())
    before = [file.stat().st_mtime_ns for file in files]
    assert run_evaluate(*options) == metrics
    assert [file.stat().st_mtime_ns for file in files] == before, "stored evaluations are not measured again"
    last = run_evaluate("--metrics", "knn", "--baselines", "random")
    assert last == metrics["epoch_000003"]
    assert run_evaluate(*options, "--force") == metrics
    assert [file.stat().st_mtime_ns for file in files] != before


def test_evaluate_of_an_export_equals_its_checkpoint(trained, run_evaluate, tmp_path, capsys):
    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(trained), "--out", str(exported)]) == 0
    capsys.readouterr()
    options = ["--metrics", "retrieval", "knn", "probe"]
    assert main(["evaluate", "--checkpoint", str(exported), *options]) == 0
    assert json.loads(capsys.readouterr().out) == run_evaluate(*options)
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["evaluate", "--checkpoint", str(exported), *options]) == 2
    assert "its export is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--epochs", "1", "3"], "--epochs: no checkpoint after epoch 1 in"),
        (["--metrics", "accuracy"], "evaluation: metrics.0: "),
        (["--severity", "3"], "--severity: found [3], but without --corrupted it is not used"),
        (["--corrupted", "--severity", "9"], "evaluation: corrupted.severities.0: "),
        (["--corrupted-dir", "x"], "--corrupted-dir: found x, but without --corrupted"),
        (["--corrupted", "--corrupted-dir", "/nowhere"], "evaluation.corrupted.dir: "),
        (["--metrics", "knn", "--split", "train"], "evaluation: split: found train"),
        (["--metrics", "knn", "--set", "knn.k=5000"], "evaluation.knn.k: 5000 is above the 180 training images"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--data", "cifar10_c"], "--data cifar10_c: its folder is given by --data-dir"),
        (["--data", "cifar10", "--data-dir", "/nowhere"], "/nowhere"),
        (["--set", "nonsense=1"], "evaluation: nonsense: unknown key"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
    ],
)
def test_evaluate_refuses_bad_flags_in_one_line_with_exit_code_2(trained, tmp_path, capsys, words, text):
    out = tmp_path / "out"
    assert main(["evaluate", "--checkpoint", str(trained), "--out", str(out), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert not out.exists()


def test_evaluate_epochs_refuses_a_damaged_checkpoint_before_measuring(tmp_path, capsys):
    runs.run(World(), tmp_path, runs.experiment())
    state = tmp_path / "checkpoints" / "epoch_000002" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(["evaluate", "--checkpoint", str(tmp_path), "--epochs", "0", "1", "2"]) == 2
    assert "epoch_000002/state.pt: does not match its manifest" in capsys.readouterr().err
    assert not (tmp_path / "evaluations").exists()
    one = f"{tmp_path}/checkpoints/epoch_000001"
    assert main(["evaluate", "--checkpoint", one, "--epochs", "1"]) == 2
    assert "--epochs: chooses among all checkpoints" in capsys.readouterr().err


def test_evaluate_data_refuses_another_number_of_channels(trained, tmp_path, capsys):
    from data.official import write_cifar

    write_cifar(tmp_path / "cifar", "cifar10")
    options = ["--data", "cifar10", "--data-dir", str(tmp_path / "cifar"), "--out", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="the official set has"):
        assert main(["evaluate", "--checkpoint", str(trained), *options]) == 2
    assert "found images of 3 channels, but checkpoint epoch_000003 was trained on 1" in capsys.readouterr().err


def test_evaluate_help_names_every_key(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    keys = out[out.index("keys for --set:") : out.index("examples:")]
    settings = re.findall(r"([a-z_.]+)=(\[[^]]*\]|[^\s,]+)", keys)
    overrides = [f"{key}={value}" for key, value in settings]
    content: dict = {}
    apply_overrides(content, overrides)
    assert validate(Evaluation, content, "help") == Evaluation(corrupted={"corruptions": ["fog", "snow"]})
    named = {key for key, _ in settings} | {"split", "metrics", "baselines", "corrupted.severities", "corrupted.dir"}
    blocks = {"corrupted": Corrupted, "knn": Neighbours, "probe": Probe}
    plain_keys = {key for key in Evaluation.model_fields if key not in blocks}
    assert named == plain_keys | {f"{name}.{key}" for name, block in blocks.items() for key in block.model_fields}


def test_evaluate_refuses_an_unwritable_folder_before_measuring(trained, capsys):
    assert main(["evaluate", "--checkpoint", str(trained), "--out", "/proc/nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --out: /proc/nowhere cannot be written")
    assert err.count("\n") == 1, "nothing was measured"


def test_evaluate_prints_a_note_when_it_replaces_an_evaluation(trained, tmp_path, capsys):
    def printed_notes(*options: str) -> str:
        assert main(["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path), *options]) == 0
        return "".join(line for line in capsys.readouterr().err.splitlines(True) if line.startswith("note: "))

    assert printed_notes("--metrics", "knn") == ""
    assert printed_notes("--metrics", "knn", "repr") == "", "nothing is lost"
    assert printed_notes("--metrics", "knn", "repr") == ""
    assert printed_notes("--metrics", "retrieval", "--baselines", "pixels") == "", "kNN and the rest stay"
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["asked"]["settings"]["metrics"] == ["knn", "repr", "retrieval"]
    assert {"knn/top1", "repr/alignment", "retrieval/mrr", "baseline/pixels/knn/top1"} <= set(stored["metrics"])
    assert printed_notes("--metrics", "knn") == ""
    assert json.loads((tmp_path / "evaluation.json").read_text()) == stored, "nothing is measured again"
    note = printed_notes("--metrics", "retrieval", "--split", "train")
    assert note.startswith(f"note: {tmp_path}/evaluation.json will be replaced, which was asked for with ")
    for text in (
        'metrics ["knn", "repr", "retrieval"]',
        'baselines ["pixels"]',
        "split test",
        "another --out keeps both\n",
    ):
        assert text in note
    assert note.count("\n") == 1


def test_evaluate_never_replaces_the_evaluation_of_a_study(tmp_path, capsys):
    trial = tmp_path / "study" / "trials" / "000-abc"
    runs.run(World(), trial, runs.experiment())
    command = ["evaluate", "--checkpoint", str(trial)]
    assert main(command) == 0, "a folder of that name without a study is not protected"
    (tmp_path / "study" / "study.json").write_text("{}")
    before = (trial / "evaluation.json").read_bytes()
    assert main(command) == 0, "the stored evaluation is printed"
    capsys.readouterr()
    for options in ([], ["--out", str(trial)], ["--checkpoint", str(trial / "checkpoints" / "epoch_000001")]):
        assert main([*command, "--split", "train", *options]) == 2
        err = capsys.readouterr().err
        assert f"{trial}: belongs to the study {tmp_path / 'study'}" in err
        assert "--out" in err
        assert err.count("\n") == 1
    assert (trial / "evaluation.json").read_bytes() == before
    assert main([*command, "--split", "train", "--out", str(tmp_path / "mine")]) == 0
    assert main([*command, "--epochs", "1"]) == 0
    assert (trial / "evaluation.json").read_bytes() == before
