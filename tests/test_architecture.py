"""What `import mbcl` and its commands load, and the absence of import cycles.

The import contracts stand in pyproject.toml; import-linter checks them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_mbcl_import_and_methods_load_no_heavy_package():
    heavy = "'ray', 'torchvision', 'wandb', 'matplotlib', 'kornia', 'pytest'"
    result = run_python("import sys, mbcl; assert not {'yaml', 'numba'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr
    result = run_python(
        "import sys, mbcl, mbcl.testing, torch\n"
        "criterion = mbcl.objectives.build('simclr')\n"
        "z = torch.randn(128, 8)\n"
        "mbcl.samplers.build('spectral', batch_size=32, k=4).plan(128, embeddings=mbcl.Embeddings(z, z + 1))\n"
        "mbcl.metrics.retrieval(z, z)\n"
        # numba reads its own settings with yaml, where it finds one
        f"loaded = [name for name in ({heavy}, 'pydantic') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    assert result.returncode == 0, result.stderr


def test_mbcl_torch_loads_neither_ray_nor_settings_nor_images():
    """Also while it plans; numba reads its own settings with yaml, where it finds one."""
    heavy = (
        "'ray', 'torchvision', 'wandb', 'matplotlib', 'kornia', 'pytest', 'pydantic', 'PIL', 'rich', 'torch._dynamo'"
    )
    result = run_python(
        "import sys, mbcl\n"
        "from mbcl.torch import PlannedBatchSampler, Replanner\n"
        f"heavy = [{heavy}]\n"
        "assert not {*heavy, 'yaml', 'numba', 'mbcl.engine', 'mbcl.config', 'mbcl.data'} & set(sys.modules)\n"
        "import torch\n"
        "z = torch.randn(32, 4)\n"
        "embed = lambda positions: (z[positions], z[positions])\n"
        "list(PlannedBatchSampler(Replanner('spectral', batch_size=4, k=2, num_samples=32, embed=embed)))\n"
        "assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr


def test_trial_processes_do_not_load_torch_dynamo_or_scipy_signal():
    """Each takes about a second of CPU in every process of a trial."""
    result = run_python(
        "import sys, mbcl.cli, mbcl.engine, mbcl.evaluation\n"
        "assert not {'torch._dynamo', 'scipy.signal'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr


def test_train_and_evaluate_do_not_load_ray(tmp_path):
    arguments = (
        f"['train', '--set', 'data.max_samples=80', '--set', 'train.epochs=1', '--quiet', '--out', {str(tmp_path)!r}]"
    )
    result = run_python(
        "import sys\n"
        "from mbcl.cli import main\n"
        f"assert main({arguments}) == 0\n"
        f"assert main(['evaluate', '--checkpoint', {str(tmp_path)!r}]) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    assert result.returncode == 0, result.stderr


def modules_of(root: Path) -> dict[str, Path]:
    """The modules of the package by name. A package is its ``__init__``."""
    paths = (root / "mbcl").rglob("*.py")
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Every import in a file, also within functions: the module, and the imported name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: a relative import"
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """The modules of the package that each one imports: at load time, within functions, and for types only."""
    modules = modules_of(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = {
            inner if (inner := f"{target}.{name}") in modules else target for target, name in imported(path)
        } & modules.keys()
        graph[module] = targets - {module}
    return graph


def test_import_graph_of_mbcl_has_no_cycle():
    graph = import_graph(ROOT)
    assert "mbcl.orchestration.trial.pretraining" in graph["mbcl.orchestration.trial.trial_runners"], "in a function"
    assert "mbcl.plan" in graph["mbcl"], "for types"
    TopologicalSorter(graph).prepare()  # a CycleError names the modules


@pytest.mark.parametrize(
    "text",
    [
        "import mbcl.a",
        "from mbcl import a",
        "from mbcl.a import x",
        "def f():\n    from mbcl.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mbcl.a import x",
    ],
)
def test_import_graph_contains_every_kind_of_import(tmp_path, text):
    (tmp_path / "mbcl").mkdir()
    (tmp_path / "mbcl/__init__.py").touch()
    (tmp_path / "mbcl/a.py").write_text("from mbcl.b import y")
    (tmp_path / "mbcl/b.py").write_text(text)
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(tmp_path)).prepare()


def test_mbcl_has_at_most_eight_top_level_modules():
    assert len(list((ROOT / "mbcl").glob("*.py"))) <= 8
