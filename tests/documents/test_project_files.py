"""CITATION.cff, the templates and pre-commit agree with the package."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

import mbcl

from .blocks import ROOT

YAML = [
    "CITATION.cff",
    ".pre-commit-config.yaml",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(".github/*/*.yml")),
]


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_read(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mbcl.__version__
    assert citation["preferred-citation"]["url"].endswith("2307.05906")


def test_pre_commit_has_the_versions_of_the_suite():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins = {entry["repo"].rsplit("/", 1)[1].removesuffix("-pre-commit"): entry["rev"].lstrip("v") for entry in hooks}
    test = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    constraints = (ROOT / "constraints.txt").read_text()
    wanted = dict(re.findall(r"^(ruff|codespell)==(\S+)$", "\n".join([*test, constraints]), flags=re.MULTILINE))
    assert pins == wanted


def test_troubleshooting_quotes_messages_of_the_code():
    source = "".join(path.read_text() for path in [ROOT / "Makefile", *(ROOT / "mbcl").rglob("*.py")])
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text.count(" ") >= 2]
    others = {"No module named 'ray'", "operator torchvision::nms does not exist", "mbcl: command not found"}
    assert len(quoted) > len(others) + 3, "it quotes hardly any message"
    assert [text for text in quoted if text not in source and text not in others] == []


def test_agents_names_folders_and_files_that_exist():
    named = re.findall(r"`((?:mbcl|docs|tests)/[\w/.]*)`", (ROOT / "AGENTS.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
