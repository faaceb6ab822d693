from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .helpers import SPACE


@pytest.fixture
def space_file(tmp_path: Path):
    """Writes the small space with changes by path; None as a value removes the key."""

    def write(changes: dict[str, Any] | None = None, name: str = "study.yaml") -> Path:
        content = yaml.safe_load(yaml.safe_dump(SPACE))
        for path, value in (changes or {}).items():
            *parents, last = path.split("/")
            block = content
            for key in parents:
                block = block.setdefault(key, {})
            if value is None:
                del block[last]
            else:
                block[last] = value
        file = tmp_path / name
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray in this process, for tests that do not change it; tests of another Ray run in other processes."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    with cluster(None, [Node(2)], verbose=False):
        yield
