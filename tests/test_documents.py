"""The code in README and CONTRIBUTING runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import torch

import mbcl
from mbcl.cli import main
from mbcl.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_contributing_example_sampler_plans(monkeypatch):
    """The block of CONTRIBUTING, with the imports of a sampler module."""
    monkeypatch.setattr(SAMPLERS, "_parts", dict(SAMPLERS._parts))
    header = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport numpy as np\n"
        "from mbcl.samplers import SAMPLERS, FloatArray, PoolPlan, PoolSampler\n"
    )
    (block,) = python_blocks("CONTRIBUTING.md")
    module = ModuleType("contributing")
    monkeypatch.setitem(sys.modules, "contributing", module)
    exec(header + block, module.__dict__)
    z = torch.arange(10.0, 0.0, -1.0)[:, None]
    plan = mbcl.samplers.build("by_norm", batch_size=2).plan(10, embeddings=mbcl.Embeddings(z, z), seed=0)
    norms = z.flatten()[plan.batches]
    assert norms.flatten().tolist() == sorted(z.flatten().tolist())


def test_readme_python_runs_and_its_plan_command_works(monkeypatch, tmp_path, capsys):
    """The README's plan uses embeddings that its Python writes; its figures depend on the processor."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks("README.md")
    assert blocks
    for block in blocks:
        exec(block, {"__name__": "readme"})
    shown = re.search(r"^\$ mbcl (plan .*)\n((?:[^$`].*\n)+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert shown is not None
    assert main(shlex.split(shown[1])) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [line.split("  ")[0] for line in shown[2].splitlines()]
    assert "digest" in names
