"""Nothing that is found or downloaded is run, no secret is written down, no name leaves the results folder."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml
from engine import runs

from mbcl.configuration import parse_yaml
from mbcl.dist import World
from mbcl.engine import train
from mbcl.errors import ConfigError
from mbcl.storage import LocalStore
from mbcl.study import read_study

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "mbcl").rglob("*.py")), ROOT / "run_ray.py", *sorted((ROOT / "benchmarks").glob("*.py"))]
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "joblib.load", "torch.hub.load", "pandas.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "shelve.open", "marshal.loads", "marshal.load",
    "pickle.load", "tarfile.extractall", "zipfile.extractall", "shutil.unpack_archive",
}  # fmt: skip
OWN_PROCESSES = {"mbcl/dist.py"}
"""What unpickles messages between the processes of one training, which read no files."""


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Every call in a file: what is called, and its options as source text."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            options = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            found.append((ast.unparse(node.func), options | {str(i): ast.unparse(a) for i, a in enumerate(node.args)}))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_what_it_reads(path):
    name = path.relative_to(ROOT).as_posix()
    for called, options in calls(path):
        assert called not in FORBIDDEN, called
        assert not called.endswith(".extractall"), called
        assert options.get("shell") != "True", called
        if called == "torch.load":
            assert options["weights_only"] == "True"
        if called in ("np.load", "numpy.load"):
            assert options["allow_pickle"] == "False"
        if called == "yaml.load":
            assert (name, options["1"]) == ("mbcl/configuration.py", "_UniqueKeys"), "a subclass of yaml.SafeLoader"
        if called in ("pickle.loads", "pickle.Unpickler"):
            assert name in OWN_PROCESSES


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch WITNESS']",
        "a: !!python/object/new:subprocess.Popen [['touch', 'WITNESS']]",
        "a: !!python/name:os.system",
    ],
)
def test_yaml_makes_no_objects(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="python/"):
        parse_yaml(text, "space.yaml")
    assert not (tmp_path / "WITNESS").exists()


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/passwd", "..", "", "a/b"])
def test_a_studys_record_cannot_name_a_folder_elsewhere(tmp_path, name):
    trial = {"ordinal": 0, "setting": 0, "seed": 0, "sampler": "shuffle", "objective": "simclr", "parameters": {}}
    study = {"name": "x", "space_digest": "0", "metric": "a", "mode": "max", "created": "now"}
    (tmp_path / "study.json").write_text(json.dumps(study | {"trials": {"0-0123abcd": trial}}))
    assert list(read_study(LocalStore(tmp_path)).trials) == ["0-0123abcd"]
    (tmp_path / "study.json").write_text(json.dumps(study | {"trials": {name: trial}}))
    with pytest.raises(ConfigError, match=r"study\.json: damaged"):
        read_study(LocalStore(tmp_path))


def test_no_key_of_wandb_is_written_down(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    key = "5ec2e7" + "0123456789" * 3 + "abcd"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(runs.experiment(track=["tensorboard", "wandb"]), world=World(), store=LocalStore(tmp_path), run_id="one")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]
    printed = capfd.readouterr()
    assert key not in printed.out + printed.err


def test_the_files_of_this_repository_hold_no_key():
    for path in (ROOT / "cluster.yaml", *sorted((ROOT / "tune_spaces").glob("*.yaml"))):
        text = path.read_text()
        assert yaml.safe_load(text)
        assert "AKIA" not in text
        assert "api_key" not in text.lower()
