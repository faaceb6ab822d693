"""What a local Ray needs of folders: a private one, short enough for sockets, without a home."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from mbcl.errors import ConfigError
from mbcl.orchestration.cluster import local_files
from mbcl.orchestration.cluster.local_files import RayStartError, private_folder

from ..helpers import ENVIRONMENT, ROOT

NOBODY = ("env", "unshare", "--user", "--map-user=54321", "--map-group=54321")
"""Runs a command as a user whose number has no name."""


def test_folder_is_private_and_removed_unless_ray_does_not_start():
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder)) <= local_files.MAX_FOLDER
    assert not folder.exists()
    with pytest.raises(RayStartError), private_folder() as kept:
        raise RayStartError("no memory")
    assert kept.is_dir(), "its logs say why"
    kept.rmdir()


def test_folder_is_elsewhere_where_the_temporary_one_is_too_long(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with private_folder() as folder:
        assert long not in folder.parents
    monkeypatch.setattr(local_files, "OTHERS", ())
    with pytest.raises(ConfigError, match="TMPDIR: there is no folder for Ray's sockets: .* characters; set TMPDIR"):
        private_folder().__enter__()


@pytest.mark.ray
@pytest.mark.skipif(
    subprocess.run([*NOBODY, "true"], capture_output=True).returncode != 0, reason="this system has no user namespaces"
)
def test_ray_starts_for_a_user_without_a_name_and_a_home(tmp_path):
    code = (
        "from mbcl.orchestration.cluster.capacity import Node\n"
        "from mbcl.orchestration.cluster.connection import cluster\n"
        "with cluster(None, [Node(1)], verbose=False):\n"
        "    import ray\n"
        "    print(ray.get(ray.remote(lambda: 'done').remote()))\n"
    )
    environment = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("RAY_AUTH")}
    environment |= {"HOME": "/proc", "TMPDIR": str(tmp_path / ("x" * 80)), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [*NOBODY, sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1:] == ["done"], result.stderr
