"""`import mbcl` and its mathematical modules load no heavy package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mbcl

HEAVY = ("ray", "torchvision", "wandb", "matplotlib", "kornia", "pydantic", "yaml", "rich")


@pytest.mark.parametrize(
    "statement", ["import mbcl", "import mbcl; mbcl.objectives, mbcl.samplers, mbcl.metrics, mbcl.optim"]
)
def test_import_loads_no_heavy_package(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_has_its_public_names() -> None:
    assert mbcl.Embeddings.__name__ == "Embeddings"
    assert mbcl.BatchPlan.__name__ == "BatchPlan"
    assert callable(mbcl.data.load)
    assert {"data", "objectives", "samplers", "metrics", "optim"} <= set(dir(mbcl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mbcl.nothing  # type: ignore[attr-defined]  # noqa: B018
