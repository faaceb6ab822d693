"""What the autoscaler of a joined cluster is about to bring up, and what it can bring up at most."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS  # noqa: TID251
from ray._private.state import state  # noqa: TID251
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

NodeResources = dict[str, float]


def _status() -> dict[str, Any]:
    """What an autoscaler of the first kind says about itself; empty without one."""
    content = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    found: dict[str, Any] = json.loads(content) if content else {}
    return found


def is_present() -> bool:
    """Whether the cluster has an autoscaler, of either kind."""
    return bool(is_autoscaler_v2() or _status())


def num_booting_nodes() -> int:
    """How many nodes the autoscaler has asked for that are not up yet; 0 without one."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)
    report = _status().get("autoscaler_report") or {}
    return len(report.get("pending_nodes", ())) + sum(report.get("pending_launches", {}).values())


def max_nodes() -> list[NodeResources] | None:
    """The resources of every node that the cluster can have at a time.

    Returns:
        None if nothing on this machine tells: there is no autoscaler, or this is not its head.
    """
    reported = state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        types = [(dict(group.resources), group.max_count) for group in reported.node_group_configs]
        return _grown(types, math.inf)
    file = _config_file(ray.get_runtime_context().gcs_address)
    try:
        return None if file is None else from_config(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError):
        return None


def from_config(config: Mapping[str, Any]) -> list[NodeResources] | None:
    """As :func:`max_nodes`, from the content of a ``cluster.yaml``: its head and as many of the largest workers as fit.

    Returns:
        None if it does not say what a type of node has.
    """
    head = config.get("head_node_type")
    nodes: list[NodeResources] = []
    workers: list[tuple[NodeResources, float]] = []
    for name, block in config.get("available_node_types", {}).items():
        resources = {str(key): float(value) for key, value in (block.get("resources") or {}).items()}
        if "CPU" not in resources:
            return None
        if name == head:
            nodes.append(resources)
        else:
            workers.append((resources, block.get("max_workers", config.get("max_workers", 0))))
    return nodes + _grown(workers, config.get("max_workers", math.inf))


def _grown(types: list[tuple[NodeResources, float]], limit: float) -> list[NodeResources]:
    """As many nodes of each type as there may be, the largest first, ``limit`` in all; -1 of a type is no limit."""
    found: list[NodeResources] = []
    for resources, most in sorted(types, key=lambda item: (item[0].get("GPU", 0), item[0].get("CPU", 0)), reverse=True):
        count = min(UNLIMITED if most < 0 else most, limit - len(found))
        found += [resources] * int(count)
    return found


UNLIMITED = 1000
"""So many nodes stand for any number."""


def _config_file(gcs_address: str) -> Path | None:
    """The configuration of the autoscaler that serves a cluster, if it runs on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it has ended
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if any(word.endswith("monitor.py") for word in words) and options.get("gcs-address") == gcs_address:
            file = options.get("autoscaling-config")
            return Path(file).expanduser() if file else None
    return None
