"""The code that the nodes of a cluster run: that of the process which starts the study."""

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


@contextmanager
def ship_working_dir() -> Iterator[dict[str, str]]:
    """What brings this very source to every node, as entries of a Ray runtime environment, while ``ray.init`` runs.

    It is the working directory of Ray's processes, not one of ``py_modules``: these come behind the folder that the
    study is started in, and a node may have an older revision at the same place.

    Nothing is brought where the study is a job that Ray has given a working directory, for it is that code which runs.

    Raises:
        ConfigError: if this process of such a job runs other code.
    """
    package = Path(mbcl.__file__).resolve().parent
    if _is_brought():
        if WORKING_DIR_FOLDER not in package.parts:
            raise ConfigError(
                f"the job's working directory does not hold mbcl, which this process has from {package}: the nodes "
                f"might run another revision; submit it from the source, with --working-dir . -- python run_ray.py"
            )
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mbcl-") as folder:
        shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield {"working_dir": folder}


def _is_brought() -> bool:
    try:
        job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
        return bool((job.get("runtime_env") or {}).get("working_dir"))
    except (ValueError, AttributeError):
        return False
