"""The JSON Schemas of spaces and experiments, and the reference: current, and of one mind with the readers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.config.yaml_reader import dump_yaml, read_yaml
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.json_schema import ROOT, SCHEMAS
from mbcl.orchestration.search_space.schema import read_space
from mbcl.synthetic.experiment import SyntheticExperiment

SPACES = sorted((ROOT / "tune_spaces").glob("*.yaml"))
CHECK = """
from mbcl.orchestration.search_space.json_schema import files
for path, content in files().items():
    assert path.read_text(encoding="utf-8") == content, f"{path}: `make reference` writes it again"
"""


def errors_of(kind: str, content: object) -> list[str]:
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    plain = json.loads(json.dumps(content))  # a schema knows text as keys only
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(plain)]


def test_schemas_and_reference_are_current():
    """In a process of its own: other tests register components."""
    subprocess.run([sys.executable, "-c", CHECK], check=True, cwd=ROOT)


@pytest.mark.parametrize("kind", ["space", "experiment"])
def test_schemas_are_schemas(kind):
    jsonschema.Draft202012Validator.check_schema(json.loads((SCHEMAS / f"{kind}.schema.json").read_text()))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_name_the_schema_and_follow_it(path):
    (location,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), flags=re.MULTILINE)
    assert (path.parent / location).resolve() == SCHEMAS / "space.schema.json"
    assert errors_of("space", read_yaml(path)) == []


def test_resolved_experiments_follow_the_schema():
    for model, content in ((Experiment, {}), (SyntheticExperiment, {"synthetic": {}})):
        resolved = validate(model, content, "x").model_dump(mode="json")
        assert errors_of("experiment", resolved) == []


GOOD = {
    "a name for a block": {"experiment": {"encoder": "resnet18", "sampler": "sc_even"}},
    "a published name": {"experiment": {"sampler": {"name": "sc_even_kb_loose", "k": 4}}},
    "workers in a range": {"resources": {"workers": {"min": 1, "max": 4}}},
    "views": {"experiment": {"data": {"views": {"crop_scale": [0.2, 1.0]}}}},
    "a schedule": {"experiment": {"planner": {"schedule": {"mix": {"0": 1.0, "5": 0.5}}}}},
    "nested keys": {"space": {"optimizer": {"lr": {"loguniform": [0.01, 1.0]}}}, "search": {"num_samples": 2}},
    "weights": {"experiment": {"encoder": {"name": "resnet_small", "weights": "encoder.safetensors"}}},
    "early stopping": {"scheduler": {"name": "asha", "grace_period": 2}},
}
BAD = {
    "a key that is unknown": {"experiment": {"train": {"epoch": 3}}},
    "text for a number": {"experiment": {"train": {"epochs": "3"}}},
    "a number out of range": {"experiment": {"data": {"validation": 1.5}}},
    "a word that is none of the allowed": {"experiment": {"train": {"precision": "float16"}}},
    "a parameter that the sampler lacks": {"experiment": {"sampler": {"name": "shuffle", "k": 4}}},
    "a parameter of another type": {"experiment": {"sampler": {"name": "spectral", "k": "four"}}},
    "a component without a name": {"experiment": {"sampler": {"k": 4}}},
    "an unknown block": {"scheduling": {}},
    "a domain of one end": {"space": {"optimizer.lr": {"uniform": [0.1]}}},
    "an empty grid": {"space": {"optimizer.lr": {"grid": []}}},
    "two domains": {"space": {"optimizer.lr": {"grid": [0.1], "choice": [0.1]}}},
    "a value for a domain": {"space": {"optimizer.lr": 0.1}},
    "an empty space": {"space": {}},
    "no workers": {"resources": {"workers": 0}},
    "gpu as text": {"resources": {"gpu": "yes"}},
    "a synthetic key that is unknown": {"experiment": {"synthetic": {"points": 3}}},
    "a synthetic study with an encoder": {"experiment": {"synthetic": {}, "encoder": {"name": "resnet_small"}}},
    "negative seeds": {"seeds": [-1]},
}
BASE = {"name": "study", "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]}}}


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_the_schema_and_the_reader_agree(name, tmp_path):
    content = BASE | GOOD.get(name, BAD.get(name, {}))
    Path(tmp_path / "space.yaml").write_text(dump_yaml(content))
    found = errors_of("space", content)
    if name in GOOD:
        assert found == []
        read_space(tmp_path / "space.yaml")
    else:
        assert found != []
        with pytest.raises(ConfigError):
            read_space(tmp_path / "space.yaml")
