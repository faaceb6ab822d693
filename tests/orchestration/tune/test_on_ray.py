"""How a study starts Ray."""

from __future__ import annotations

import subprocess
import sys

from ..helpers import ROOT


def test_on_ray_is_imported_without_ray():
    """Ray reads RAY_AUTH_MODE once, when it is imported; a local Ray without a token runs any user's code."""
    code = "import sys, mbcl.orchestration.tune.on_ray; assert 'ray' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
