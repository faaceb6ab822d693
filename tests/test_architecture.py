"""What `import mbcl` and its commands load; which module imports which is said to import-linter in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_the_package_and_its_methods_load_nothing_heavy():
    heavy = "'ray', 'torchvision', 'wandb', 'matplotlib', 'kornia'"
    found = run_python("import sys, mbcl; assert not {'yaml', 'numba'} & set(sys.modules)")
    assert found.returncode == 0, found.stderr
    found = run_python(
        "import sys, mbcl, torch\n"
        "criterion = mbcl.objectives.build('simclr')\n"
        "z = torch.randn(128, 8)\n"
        "mbcl.samplers.build('spectral', batch_size=32, k=4).plan(128, embeddings=mbcl.Embeddings(z, z + 1))\n"
        "mbcl.metrics.retrieval(z, z)\n"
        # numba reads its own settings with yaml, where it finds one
        f"loaded = [name for name in ({heavy}, 'pydantic') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    assert found.returncode == 0, found.stderr


def test_the_processes_of_a_trial_load_no_compiler():
    """torch._dynamo takes a second of CPU, and a trial has four processes."""
    found = run_python("import sys, mbcl.cli, mbcl.engine, mbcl.evaluation; assert 'torch._dynamo' not in sys.modules")
    assert found.returncode == 0, found.stderr


def test_training_and_evaluating_load_no_ray(tmp_path):
    arguments = (
        f"['train', '--set', 'data.max_samples=80', '--set', 'train.epochs=1', '--quiet', '--out', {str(tmp_path)!r}]"
    )
    found = run_python(
        "import sys\n"
        "from mbcl.cli import main\n"
        f"assert main({arguments}) == 0\n"
        f"assert main(['evaluate', '--checkpoint', {str(tmp_path)!r}]) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    assert found.returncode == 0, found.stderr
