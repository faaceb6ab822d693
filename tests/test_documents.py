"""The sampler of CONTRIBUTING.md runs, and its check finds faults. Other documents: tests/documents."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import mbcl
from mbcl.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.fixture
def by_norm(monkeypatch, tmp_path) -> Path:
    """The sampler of CONTRIBUTING, as it stands there, in a file outside the package."""
    monkeypatch.setattr(SAMPLERS, "_parts", dict(SAMPLERS._parts))
    (block,) = python_blocks("CONTRIBUTING.md")
    path = tmp_path / "by_norm.py"
    path.write_text(block)
    return path


def test_contributing_example_sampler_plans_and_passes_its_check(by_norm):
    assert 'check_sampler("by_norm"' in by_norm.read_text()
    runpy.run_path(str(by_norm), run_name="__main__")
    z = torch.arange(10.0, 0.0, -1.0)[:, None]
    plan = mbcl.samplers.build("by_norm", batch_size=2).plan(10, embeddings=mbcl.Embeddings(z, z), seed=0)
    norms = z.flatten()[plan.batches]
    assert norms.flatten().tolist() == sorted(z.flatten().tolist())


def test_contributing_example_check_names_a_fault(by_norm):
    text = by_norm.read_text()
    order = "order = np.argsort(np.linalg.norm(z1_MD, axis=1))"
    assert order in text
    for fault, promise in (
        ("order = np.zeros(len(z1_MD), dtype=np.int64)", "by_norm': plan: .*no_repeats True .* a sample twice"),
        ("order = np.random.permutation(len(z1_MD))", "by_norm': global random state: promised"),
    ):
        by_norm.write_text(text.replace(order, fault))
        SAMPLERS._parts.pop("by_norm", None)
        with pytest.raises(AssertionError, match=promise):
            runpy.run_path(str(by_norm), run_name="__main__")
