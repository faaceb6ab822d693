"""The largest size of a cluster, read from ``cluster.yaml`` and from the command line of a monitor process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from ..helpers import ROOT

pytest.importorskip("ray")


def test_from_config_reads_the_shipped_cluster():
    from mbcl.orchestration.cluster.autoscaler import from_config
    from mbcl.orchestration.cluster.connection import _training_nodes

    nodes = from_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    assert nodes == [{"CPU": 0, "driver": 1000}] + [{"CPU": 8, "GPU": 1, "task": 8}] * 4
    assert len(_training_nodes(nodes)) == 4, "the head trains nothing"


@pytest.mark.parametrize(
    ("limit", "cpus"), [(None, [0, 8, 8, 4, 4, 4]), (3, [0, 8, 8, 4]), (1, [0, 8]), (0, [0]), (9, [0, 8, 8, 4, 4, 4])]
)
def test_from_config_takes_the_largest_nodes_up_to_max_workers(limit, cpus):
    from mbcl.orchestration.cluster.autoscaler import from_config

    config = {
        "head_node_type": "head",
        "available_node_types": {
            "small": {"resources": {"CPU": 4}, "max_workers": 3},
            "head": {"resources": {"CPU": 0}},
            "large": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2, "min_workers": 0},
        },
    }
    if limit is not None:
        config["max_workers"] = limit
    assert [node["CPU"] for node in from_config(config)] == cpus
    config["available_node_types"]["unknown"] = {"node_config": {"InstanceType": "x"}, "max_workers": 1}
    assert from_config(config) is None, "the resources of a node type are unknown"


def test_config_file_is_found_by_the_address_of_the_monitor(tmp_path):
    from mbcl.orchestration.cluster.autoscaler import _config_file

    script = tmp_path / "monitor.py"
    script.write_text("import sys; print('up', flush=True); sys.stdin.read()")
    options = ["--gcs-address=10.0.0.1:6379", f"--autoscaling-config={tmp_path}/bootstrap.yaml", "--monitor-ip=x"]
    command = [sys.executable, str(script), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert _config_file("10.0.0.1:6379") == tmp_path / "bootstrap.yaml"
        assert _config_file("10.0.0.2:6379") is None
        process.communicate()
    assert _config_file("10.0.0.1:6379") is None
