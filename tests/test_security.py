"""No code from files or downloads runs, no secret is stored, and no name leads out of the results folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from engine import runs

from mbcl.config.yaml_reader import parse_yaml
from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.study.record import read_study

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "mbcl").rglob("*.py")), ROOT / "run_ray.py", *sorted((ROOT / "benchmarks").glob("*.py"))]
FORBIDDEN = """
import random
eval("1")
exec("1")
os.system("true")
os.popen("true")
subprocess.run("true", shell=True)
start("true", shell=True)
pickle.load(stream)
pickle.loads(b"")
pickle.Unpickler(stream)
marshal.load(stream)
marshal.loads(b"")
shelve.open("x")
joblib.load("x")
pd.read_pickle("x")
torch.hub.load("x", "y")
yaml.load(stream)
yaml.load(stream, yaml.Loader)
yaml.load_all(stream, yaml.SafeLoader)
yaml.full_load(stream)
yaml.unsafe_load(stream)
tarfile.open("x").extractall()
zipfile.ZipFile("x").extractall()
shutil.unpack_archive("x")
torch.distributed.barrier()
np.random.seed(0)
np.random.rand(3)
torch.manual_seed(0)
torch.random.manual_seed(0)
"""
IMPORTS = """
import marshal, os, pickle, shelve, shutil, subprocess, tarfile, zipfile
import joblib, numpy as np, pandas as pd, torch, torch.distributed, yaml
"""


@pytest.mark.parametrize("name", ["mbcl/x.py", "mbcl/orchestration/x.py", "benchmarks/x.py", "run_ray.py"])
def test_ruff_forbids_unsafe_calls_and_global_generators(name):
    """The test fails if somebody removes a rule from pyproject.toml."""
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--output-format", "json"]
    source = (IMPORTS.strip() + FORBIDDEN).encode()
    result = subprocess.run([*ruff, "--stdin-filename", name, "-"], input=source, cwd=ROOT, capture_output=True)
    rules = [rule for rule in json.loads(result.stdout) if rule["code"].startswith(("S", "TID", "NPY"))]
    lines = {rule["location"]["row"] for rule in rules}
    assert [line for number, line in enumerate(FORBIDDEN.splitlines()[1:], 3) if number not in lines] == []


def test_sources_have_no_unsafe_calls_beyond_ruffs_rules():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, position = ast.unparse(node.func), f"{path}:{node.lineno}"
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called != "compile", position
                assert not called.endswith(".extractall"), position
                if called == "torch.load":
                    assert options.get("weights_only") == "True", position
                if called in ("np.load", "numpy.load"):
                    assert options.get("allow_pickle") == "False", position


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch WITNESS']",
        "a: !!python/object/new:subprocess.Popen [['touch', 'WITNESS']]",
        "a: !!python/name:os.system",
    ],
)
def test_parse_yaml_creates_no_objects(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="python/"):
        parse_yaml(text, "space.yaml")
    assert not (tmp_path / "WITNESS").exists()


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/passwd", "..", "", "a/b"])
def test_read_study_refuses_trial_names_outside_the_folder(tmp_path, name):
    trial = {"ordinal": 0, "setting": 0, "seed": 0, "sampler": "shuffle", "objective": "simclr", "parameters": {}}
    study = {"name": "x", "space_digest": "0", "metric": "a", "mode": "max", "created": "now"}
    (tmp_path / "study.json").write_text(json.dumps(study | {"trials": {"0-0123abcd": trial}}))
    assert list(read_study(LocalStore(tmp_path)).trials) == ["0-0123abcd"]
    (tmp_path / "study.json").write_text(json.dumps(study | {"trials": {name: trial}}))
    with pytest.raises(ConfigError, match=r"study\.json: damaged"):
        read_study(LocalStore(tmp_path))


def test_train_stores_no_wandb_key(tmp_path, monkeypatch, capfd):
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


def test_repository_files_contain_no_key():
    for path in (ROOT / "cluster.yaml", *sorted((ROOT / "tune_spaces").glob("*.yaml"))):
        text = path.read_text()
        assert yaml.safe_load(text)
        assert "AKIA" not in text
        assert "api_key" not in text.lower()
