"""The site builds without a warning, and has a page for every method."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mbcl.objectives import OBJECTIVES
from mbcl.samplers import SAMPLERS

from .blocks import ROOT

SECTIONS = ("Cost:", "When to use:", "Reference:")
METHODS = [(kind, name) for kind, registry in (("samplers", SAMPLERS), ("objectives", OBJECTIVES)) for name in registry]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_docstring_of_a_method_has_formula_cost_use_and_source(kind, name):
    part = {"samplers": SAMPLERS, "objectives": OBJECTIVES}[kind][name]
    text = part.__doc__
    missing = [section for section in SECTIONS if f"\n    {section}\n" not in text]
    assert not missing, f"{name}: the docstring lacks {missing}"


def test_make_docs_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    options = ["-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees")]
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for kind, name in METHODS:
        page = (tmp_path / "site/generated" / kind / f"{name}.html").read_text()
        text = re.sub(r"<[^>]+>", "", page)
        for title in ("Cost", "When to use", "Reference"):
            assert title in text, f"{name}: {title}"
    assert "PlannedBatchSampler" in (tmp_path / "site/generated/api/mbcl.torch.html").read_text()
