from __future__ import annotations

import pytest
from engine import runs
from evaluation.trained import CONTENT

from mbcl.distributed.collectives import World
from mbcl.io.store import LocalStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    runs.run(World(), folder, CONTENT)
    return LocalStore(folder)
