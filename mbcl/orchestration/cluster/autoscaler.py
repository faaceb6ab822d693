"""The maximum size of a joined cluster that has an autoscaler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from mbcl.orchestration.cluster.ray_internals import NodeResources, NodeType, autoscaler_node_types

UNLIMITED = 1000
"""Substitute for an unlimited number of nodes."""


def max_nodes() -> list[NodeResources] | None:
    """Return the resources of each node of the cluster at its maximum size.

    Returns:
        None if that is unknown: there is no autoscaler, or its configuration file is on another node, the head.
    """
    node_types = autoscaler_node_types()
    if node_types:
        return _largest_cluster(node_types, math.inf)
    file = _config_file(ray.get_runtime_context().gcs_address)
    try:
        return None if file is None else from_config(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError):
        return None


def from_config(config: Mapping[str, Any]) -> list[NodeResources] | None:
    """Return the resources of the nodes of a ``cluster.yaml`` at its maximum size: head, then workers, largest first.

    Returns:
        None if the file does not state the resources of a node type.
    """
    head = config.get("head_node_type")
    nodes: list[NodeResources] = []
    workers: list[NodeType] = []
    for name, block in config.get("available_node_types", {}).items():
        resources = {str(key): float(value) for key, value in (block.get("resources") or {}).items()}
        if "CPU" not in resources:
            return None
        if name == head:
            nodes.append(resources)
        else:
            workers.append(NodeType(resources, block.get("max_workers", config.get("max_workers", 0))))
    return nodes + _largest_cluster(workers, config.get("max_workers", math.inf))


def _largest_cluster(node_types: Sequence[NodeType], max_workers: float) -> list[NodeResources]:
    """Return nodes of each type up to its maximum, most GPUs and CPUs first, at most ``max_workers`` in all."""
    nodes: list[NodeResources] = []
    largest_first = sorted(
        node_types, key=lambda each: (each.resources.get("GPU", 0), each.resources.get("CPU", 0)), reverse=True
    )
    for node_type in largest_first:
        max_count = UNLIMITED if node_type.max_count < 0 else node_type.max_count
        nodes += [node_type.resources] * int(min(max_count, max_workers - len(nodes)))
    return nodes


def _config_file(gcs_address: str) -> Path | None:
    """Return the configuration file of the cluster's autoscaler, if that runs on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue  # the process has ended
        options = dict(each[2:].split("=", 1) for each in arguments if each.startswith("--") and "=" in each)
        if any(each.endswith("monitor.py") for each in arguments) and options.get("gcs-address") == gcs_address:
            file = options.get("autoscaling-config")
            return Path(file).expanduser() if file else None
    return None
