"""``mbcl evaluate`` as a user meets it."""

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
    # The best one is kept, too, and may be the first.
    LocalStore(folder).delete("checkpoints/epoch_000001")
    return folder


@pytest.fixture
def call(trained, tmp_path, capsys):
    def run(*words: str) -> dict:
        assert main(["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path), *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_flags_choose_metrics(call, tmp_path):
    found = call(
        "--metrics", "retrieval", "knn", "--corrupted", "--severity", "2", "--set", "corrupted.corruptions=[fog, snow]"
    )
    assert {"retrieval/u2v/top1", "knn/top1", "corrupted/within/2/u2v/top1", "corrupted/clean/snow/2/top1"} <= set(
        found
    )
    assert not [key for key in found if key.startswith("corrupted/") and "/2/" not in key]
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["metrics"] == found
    assert stored["asked"]["settings"]["metrics"] == ["retrieval", "knn", "corrupted"]


def test_several_epochs_are_evaluated_once(call, tmp_path):
    words = ["--epochs", "-1", "2", "3", "--metrics", "knn", "--baselines", "random"]
    found = call(*words)
    assert list(found) == ["epoch_000000", "epoch_000002", "epoch_000003"]
    assert found["epoch_000000"]["knn/top1"] == found["epoch_000000"]["baseline/random/knn/top1"]
    files = sorted(tmp_path.glob("evaluations/*/evaluation.json"))
    assert [json.loads(file.read_text())["metrics"] for file in files] == list(found.values())
    before = [file.stat().st_mtime_ns for file in files]
    assert call(*words) == found
    assert [file.stat().st_mtime_ns for file in files] == before, "done is done"
    last = call("--metrics", "knn", "--baselines", "random")
    assert last == found["epoch_000003"]
    assert call(*words, "--force") == found
    assert [file.stat().st_mtime_ns for file in files] != before


def test_an_export_gives_what_its_checkpoint_gives(trained, call, tmp_path, capsys):
    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(trained), "--out", str(exported)]) == 0
    capsys.readouterr()
    words = ["--metrics", "retrieval", "knn", "probe"]
    assert main(["evaluate", "--checkpoint", str(exported), *words]) == 0
    assert json.loads(capsys.readouterr().out) == call(*words)
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["evaluate", "--checkpoint", str(exported), *words]) == 2
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
def test_bad_flags_are_one_line_and_exit_code_2(trained, tmp_path, capsys, words, text):
    out = tmp_path / "out"
    assert main(["evaluate", "--checkpoint", str(trained), "--out", str(out), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert not out.exists()


def test_a_damaged_checkpoint_is_refused_before_anything_is_evaluated(tmp_path, capsys):
    runs.run(World(), tmp_path, runs.experiment())
    state = tmp_path / "checkpoints" / "epoch_000002" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(["evaluate", "--checkpoint", str(tmp_path), "--epochs", "0", "1", "2"]) == 2
    assert "epoch_000002/state.pt: does not match its manifest" in capsys.readouterr().err
    assert not (tmp_path / "evaluations").exists()
    one = f"{tmp_path}/checkpoints/epoch_000001"
    assert main(["evaluate", "--checkpoint", one, "--epochs", "1"]) == 2
    assert "--epochs: chooses among all checkpoints" in capsys.readouterr().err


def test_another_data_set_needs_the_same_channels(trained, tmp_path, capsys):
    from data.official import write_cifar

    write_cifar(tmp_path / "cifar", "cifar10")
    words = ["--data", "cifar10", "--data-dir", str(tmp_path / "cifar"), "--out", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="the official set has"):
        assert main(["evaluate", "--checkpoint", str(trained), *words]) == 2
    assert "found images of 3 channels, but checkpoint epoch_000003 was trained on 1" in capsys.readouterr().err


def test_the_keys_that_help_names_are_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    keys = out[out.index("keys for --set:") : out.index("examples:")]
    words = re.findall(r"([a-z_.]+)=(\[[^]]*\]|[^\s,]+)", keys)
    overrides = [f"{key}={value}" for key, value in words]
    content: dict = {}
    apply_overrides(content, overrides)
    assert validate(Evaluation, content, "help") == Evaluation(corrupted={"corruptions": ["fog", "snow"]})
    named = {key for key, _ in words} | {"split", "metrics", "baselines", "corrupted.severities", "corrupted.dir"}
    blocks = {"corrupted": Corrupted, "knn": Neighbours, "probe": Probe}
    there = {key for key in Evaluation.model_fields if key not in blocks}
    assert named == there | {f"{name}.{key}" for name, block in blocks.items() for key in block.model_fields}


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(trained, capsys):
    assert main(["evaluate", "--checkpoint", str(trained), "--out", "/proc/nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --out: /proc/nowhere cannot be written")
    assert err.count("\n") == 1, "nothing was measured"


def test_what_is_replaced_is_said(trained, tmp_path, capsys):
    def said(*words: str) -> str:
        assert main(["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path), *words]) == 0
        return "".join(line for line in capsys.readouterr().err.splitlines(True) if line.startswith("note: "))

    assert said("--metrics", "knn") == ""
    assert said("--metrics", "knn", "repr") == "", "nothing is lost"
    assert said("--metrics", "knn", "repr") == ""
    note = said("--metrics", "retrieval", "--split", "train")
    assert note.startswith(f"note: {tmp_path}/evaluation.json will be replaced, which was asked for with ")
    for words in ('metrics ["knn", "repr"]', "split test", "another --out keeps both\n"):
        assert words in note
    assert note.count("\n") == 1


def test_the_evaluation_of_a_sweeps_trial_is_not_replaced(tmp_path, capsys):
    trial = tmp_path / "study" / "trials" / "000-abc"
    runs.run(World(), trial, runs.experiment())
    words = ["evaluate", "--checkpoint", str(trial)]
    assert main(words) == 0, "a folder that is called so without a study is anyone's"
    (tmp_path / "study" / "study.json").write_text("{}")
    before = (trial / "evaluation.json").read_bytes()
    assert main(words) == 0, "what is there is shown"
    capsys.readouterr()
    for more in ([], ["--out", str(trial)], ["--checkpoint", str(trial / "checkpoints" / "epoch_000001")]):
        assert main([*words, "--split", "train", *more]) == 2
        err = capsys.readouterr().err
        assert f"{trial}: belongs to the study {tmp_path / 'study'}" in err
        assert "--out" in err
        assert err.count("\n") == 1
    assert (trial / "evaluation.json").read_bytes() == before
    assert main([*words, "--split", "train", "--out", str(tmp_path / "mine")]) == 0
    assert main([*words, "--epochs", "1"]) == 0
    assert (trial / "evaluation.json").read_bytes() == before
