"""A cluster on this machine with the real autoscaler of Ray: a head, and workers that boot on demand."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HEAD = "ray.head.default"  # the name that the node provider of Ray uses


@contextmanager
def autoscaled(folder: Path, worker: dict[str, Any], *, max_workers: int) -> Iterator[str]:
    """The address of a cluster whose head trains nothing.

    Args:
        folder: for its configuration.
        worker: the resources of each worker.
        max_workers: how many there may be.
    """
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG
    from ray.cluster_utils import Cluster

    os.environ["RAY_FAKE_CLUSTER"] = "1"
    os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    kinds = {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_workers},
    }
    config = {
        "cluster_name": "test",
        "max_workers": max_workers,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "auth": {},
        "head_node_type": HEAD,
        "available_node_types": kinds,
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(BASE_READONLY_CONFIG | config))
    options = {"num_cpus": 0, "include_dashboard": False, "autoscaling_config": str(file)}
    nodes = Cluster(initialize_head=True, connect=False, head_node_args={**options, "gcs_server_port": port})
    address: str = nodes.address
    try:
        yield address
    finally:
        nodes.shutdown()
        _end_workers(address)


def _end_workers(address: str) -> None:
    """Kill the worker nodes, which outlive the autoscaler."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"--gcs-address={address}" in (process / "cmdline").read_text().split("\0"):
                os.kill(int(process.name), signal.SIGKILL)
