"""Shipping of the study's source code to the nodes of a cluster."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mbcl
from mbcl.errors import ConfigError
from mbcl.orchestration.cluster.ray_environment import JOB_CONFIG_VARIABLE, WORKING_DIR_FOLDER
from mbcl.plugins import loaded


@contextmanager
def ship_working_dir() -> Iterator[dict[str, str]]:
    """Yield the entries of a Ray runtime environment that ship this source to every node; keep open for ``ray.init``.

    The source is shipped as the working directory of Ray's processes. ``py_modules`` would not do: they come after the
    folder that the study is started in on ``sys.path``, and a node may have an older revision at the same path.

    Nothing is shipped if the study is a Ray job that was submitted with a working directory: the nodes run that code.

    Raises:
        ConfigError: if the study is such a job, and this process runs other code or has plugins of other folders.
    """
    package = Path(mbcl.__file__).resolve().parent
    if _job_has_working_dir():
        if WORKING_DIR_FOLDER not in package.parts:
            raise ConfigError(
                f"the job's working directory does not hold mbcl, which this process has from {package}: the nodes "
                f"might run another revision; submit it from the source, with --working-dir . -- python run_ray.py"
            )
        for plugin in loaded():
            if WORKING_DIR_FOLDER not in plugin.path.parts:
                raise ConfigError(
                    f"the job's working directory does not hold the plugin {plugin.path}, which the nodes need, too: "
                    "put it into the folder of --working-dir, and name it relative to that"
                )
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mbcl-") as folder:
        shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        for plugin in loaded():  # beside the package, where the nodes look for them
            shutil.copy(plugin.path, folder)
        yield {"working_dir": folder}


def _job_has_working_dir() -> bool:
    """Return whether this process belongs to a Ray job that was submitted with a working directory."""
    try:
        job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
        return bool((job.get("runtime_env") or {}).get("working_dir"))
    except (ValueError, AttributeError):
        return False
