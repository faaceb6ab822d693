"""Nothing that is found or downloaded is run, no secret is written down, no name leaves the results folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from engine import runs

from mbcl.config.base import parse_yaml
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
def test_ruff_knows_every_call_that_runs_what_it_reads_or_draws_from_a_global_generator(name):
    """So that no rule of pyproject.toml is taken back unnoticed."""
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--output-format", "json"]
    source = (IMPORTS.strip() + FORBIDDEN).encode()
    result = subprocess.run([*ruff, "--stdin-filename", name, "-"], input=source, cwd=ROOT, capture_output=True)
    found = [rule for rule in json.loads(result.stdout) if rule["code"].startswith(("S", "TID", "NPY"))]
    lines = {rule["location"]["row"] for rule in found}
    assert [line for number, line in enumerate(FORBIDDEN.splitlines()[1:], 3) if number not in lines] == []


def test_what_no_rule_of_ruff_knows_is_in_no_source():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, where = ast.unparse(node.func), f"{path}:{node.lineno}"
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called != "compile", where
                assert not called.endswith(".extractall"), where
                if called == "torch.load":
                    assert options.get("weights_only") == "True", where
                if called in ("np.load", "numpy.load"):
                    assert options.get("allow_pickle") == "False", where


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
