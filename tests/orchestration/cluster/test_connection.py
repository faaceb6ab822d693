"""Joining a cluster of two nodes, both on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.trial.preflight import check_shared

from ..helpers import ROOT, apart, command, errors_in, line_of
from .autoscaled import autoscaled

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


class Unshared(LocalStore):
    """A folder that other nodes would find nothing in."""

    @property
    def uri(self) -> str:
        return "/not/here"


def impossible(space: Path, folder: Path, address: str) -> dict[str, Any]:
    """A sweep on the cluster that asks for more than it has."""
    options = ["--address", address, "--set", "resources.workers=8", "--set", "resources.cpus_per_worker=1"]
    result = subprocess.run(command(space, folder, *options), cwd=ROOT, capture_output=True, text=True)
    return {
        "code": result.returncode,
        "stderr": errors_in(result.stderr),
        "files": sorted(path.name for path in folder.rglob("*")),
    }


def look(folder: Path, space: Path) -> dict[str, Any]:
    """What is seen in a cluster as ``cluster.yaml`` shapes it; runs in a process of its own."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.cluster_utils import Cluster
    from ray.experimental.internal_kv import _internal_kv_put
    from ray.tune.utils.callback import _create_default_callbacks

    from mbcl.orchestration.cluster import connection as module
    from mbcl.orchestration.cluster.ray_internals import autoscaler_status

    module.POLL_SECONDS = 0.1
    nodes = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "resources": {"driver": 1000}, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=2, resources={"task": 2})
    nodes.head_node.kill_monitor()  # its own report, every five seconds, would replace those of this test
    seen: dict[str, Any] = {}
    said: list[str] = []

    def log(text: str) -> None:
        said.append(text)
        status = {"autoscaler_report": {"pending_nodes": [], "pending_launches": {}}}
        _internal_kv_put(DEBUG_AUTOSCALING_STATUS, json.dumps(status), overwrite=True)

    try:
        with module.cluster(nodes.address, [], verbose=False) as found:
            seen["nodes"] = [node.cpus for node in found.nodes]
            seen["placement"] = [found.placement.driver, found.placement.task]
            status = {"autoscaler_report": {"pending_nodes": [["1.2.3.4", "w", "up"]], "pending_launches": {"w": 2}}}
            _internal_kv_put(DEBUG_AUTOSCALING_STATUS, json.dumps(status), overwrite=True)
            seen["booting"] = autoscaler_status().num_booting
            seen["loggers"] = [type(logger).__name__ for logger in _create_default_callbacks([], air_verbosity=None)]
            module._cluster_info(log)
            seen["said"] = said
            check_shared(LocalStore(folder))
            try:
                check_shared(Unshared(folder))
            except ConfigError as error:
                seen["error"] = str(error)
            for kind, resources in (("driver", found.placement.for_driver), ("task", found.placement.for_task)):
                where = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_node_id())
                node = ray.get(where.options(resources=resources).remote())
                seen[kind] = next(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["NodeID"] == node)
            code = ray.remote(num_cpus=0)(lambda: __import__("mbcl").__file__)
            seen["code"] = ray.get(code.options(resources=found.placement.for_task).remote())
        seen["impossible"] = impossible(space, folder / "results", nodes.address)
    finally:
        nodes.shutdown()
    return seen


def test_a_joined_cluster(tmp_path, space_file):
    seen = apart(
        "cluster.test_connection", f"look(pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(space_file())!r}))"
    )
    assert seen["nodes"] == [2], "the head trains nothing"
    assert seen["placement"] == [True, True]
    assert seen["booting"] == 3
    assert not [name for name in seen["loggers"] if "Logger" in name], "Tune writes no files of its own"
    (said,) = seen["said"]
    assert said.startswith("waiting for nodes: 1 can train, 3 are booting, ")
    assert (seen["driver"], seen["task"]) == (0, 2), "drivers on the head, tasks on the workers"
    assert "working_dir_files" in seen["code"], "nodes run the code of the process that joined"
    assert "does not see /not/here" in seen["error"]
    assert "--results-dir" in seen["error"]
    assert not list(tmp_path.glob(".*"))
    refused = seen["impossible"]
    assert refused["code"] == 2
    assert refused["stderr"].startswith("error: resources: not one trial fits: it needs 8 workers with 0.999 CPU each")
    assert "there are 2 CPUs, of which a trial takes 7.992" in refused["stderr"]
    assert refused["stderr"].count("\n") == 1
    assert refused["files"] == [".lock", ".owner", "study"], "nothing is left behind"


def alone_at_first(folder: Path, space: Path) -> dict[str, Any]:
    """A sweep into a folder that each process has to itself, on a cluster whose only worker boots when it is needed."""
    call = command(space, Path("/proc/self/cwd/results"))
    call[1] = str(ROOT / call[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with autoscaled(folder, {"CPU": 2}, max_workers=1) as address:
        result = subprocess.run(
            [*call, "--address", address], cwd=folder, env=environment, capture_output=True, text=True
        )
    return {"code": result.returncode, "said": result.stdout + result.stderr}


@pytest.mark.slow
def test_a_local_folder_is_refused_though_the_head_is_alone_at_first(tmp_path, space_file):
    where = f"pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(space_file())!r})"
    seen = apart("cluster.test_connection", f"alone_at_first({where})")
    assert seen["code"] == 2, seen["said"]
    assert "nodes that train: the cluster can have 1, 0 are up" in seen["said"]
    assert "does not see /proc/self/cwd/results/study" in seen["said"]
    assert not (tmp_path / "results" / "study" / "study.json").exists()


def test_an_address_for_rays_client_is_refused(space_file, tmp_path):
    result = subprocess.run(
        command(space_file(), tmp_path / "results", "--address", "ray://127.0.0.1:10001"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "give HOST:PORT of the cluster's head" in result.stderr
    assert errors_in(result.stderr).count("\n") == 1


SHIPPED = (
    "from mbcl.orchestration.cluster.ship_code import ship_working_dir as code\nwith code() as found: print(found)"
)


@pytest.mark.parametrize("plugin", ["mine/parts.py", "../../parts.py"])
@pytest.mark.parametrize("unpacked", [True, False])
def test_a_job_whose_working_directory_has_no_mbcl_or_lacks_a_plugin_is_refused(tmp_path, unpacked, plugin):
    place = tmp_path / "working_dir_files" / "_ray_pkg_0"
    place.mkdir(parents=True)
    shutil.copytree(ROOT / "mbcl", place / "mbcl", ignore=shutil.ignore_patterns("__pycache__"))
    job = json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}})
    environment = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": job, "PYTHONPATH": str(place if unpacked else ROOT)}
    (place / plugin).parent.mkdir(exist_ok=True)
    (place / plugin).write_text("")
    load = f"from mbcl.plugins import load_plugins\nload_plugins(['{plugin}'])\n"
    line = [sys.executable, "-P", "-c", load + SHIPPED]
    result = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
    if unpacked and plugin == "mine/parts.py":
        assert result.stdout == "{}\n", result.stderr
    elif unpacked:
        assert f"the job's working directory does not hold the plugin {tmp_path}/parts.py" in result.stderr
    else:
        assert "the job's working directory does not hold mbcl" in result.stderr


def serve() -> None:
    """Run the head of a cluster until the input of this process ends; prints its address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False})
    print(nodes.address, flush=True)
    sys.stdin.read()
    nodes.shutdown()


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a cluster that asks for a token."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    line, pipe = line_of("cluster.test_connection", "serve()"), subprocess.PIPE
    with subprocess.Popen(
        line, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


TOKEN = "0123456789abcdef" * 4


def asked(address: str, patience: float = PATIENCE) -> str:
    """What is wrong with an address, empty if nothing; runs in a process of its own, with a token of its own."""
    from mbcl.orchestration.cluster import connection as module

    module.CONNECT_SECONDS = module.STATUS_SECONDS = patience
    try:
        module.check_address(address)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, ""),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN[::-1]}, "asks for a token that this process does not give"),
        pytest.param(
            {"RAY_AUTH_MODE": "disabled"},
            "asks for a token that this process does not give",
            marks=pytest.mark.slow,
        ),
        ({"RAY_AUTH_MODE": "token"}, "Ray couldn't find an authentication token"),
    ],
)
def test_a_cluster_is_joined_with_its_token_alone(head, tmp_path, given, words):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), **given}
    found = apart("cluster.test_connection", f"asked({head!r})", environment=environment)
    assert words in found
    assert bool(words) == bool(found)
    assert "\n" not in found


def test_what_listens_and_does_not_answer_is_refused_after_a_limit():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        error = apart("cluster.test_connection", f"asked({address!r}, 0.1)")
    assert error == f"--address {address}: something listens there that does not answer as a Ray cluster within 0.1 s"


@pytest.mark.slow  # ray status takes 40 s to give up
def test_what_listens_and_is_no_ray_is_refused_before_anything_is_written(space_file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        line = command(space_file(), tmp_path / "results", "--address", address)
        result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert f"--address {address}: something listens there that does not answer as a Ray cluster" in result.stderr
    assert errors_in(result.stderr).count("\n") == 1
    assert not (tmp_path / "results").exists()
