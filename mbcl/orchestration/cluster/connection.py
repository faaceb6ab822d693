"""Starting a local Ray or joining one, quietly, and what its nodes have."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.cluster.ray_environment import ENV_ALL, ENV_CLUSTER, ENV_DRIVER, ENV_LOCAL
from mbcl.orchestration.cluster.ship_code import ship_working_dir

BOOT_SECONDS = 900.0
"""How long nodes that an autoscaler has asked for may take to boot."""
FIRST_REQUEST_SECONDS = 20.0
"""How long an autoscaler may take to ask for the first node that is needed."""
NOTIFY_SECONDS = 30.0
"""How often a person is told what is waited for."""
POLL_SECONDS = 2.0
CONNECT_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""
STATUS_SECONDS = 30.0
"""How long ``ray status`` may take to answer; it imports Ray first."""


@dataclass(frozen=True)
class ClusterInfo:
    """A Ray that runs.

    Args:
        nodes: those that trials can use; of a cluster that grows, those that it can have.
        placement: which nodes the small processes of trials run on.
        drivers: how much there is of the custom resource ``driver``; None if nobody offers it.
    """

    nodes: list[Node]
    placement: Placement = Placement()
    drivers: float | None = None


@contextmanager
def cluster(
    address: str | None,
    nodes: list[Node],
    *,
    verbose: bool,
    log: Callable[[str], None] = lambda text: None,
    dashboard: bool = False,
) -> Iterator[ClusterInfo]:
    """A Ray for the time of the block: a local one that ends with it, or the one at ``address``.

    Args:
        address: of a running cluster, or None.
        nodes: what a local Ray may use.
        verbose: whether Ray may talk.
        log: is told in a line what is waited for.
        dashboard: whether a local Ray starts one; nothing here needs it.

    Yields:
        What it has.

    Raises:
        ConfigError: if no cluster answers at ``address``.
    """
    wanted = {**ENV_DRIVER, **({} if address else ENV_LOCAL | ENV_ALL)}
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    level = logging.INFO if verbose else logging.ERROR
    if address is None and "ray" not in sys.modules:
        # A token that only this user can read; without it any user of this machine could run code as this one. Ray does
        # so by itself, but warns; and it reads the mode once, when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Ray's services then listen on the loopback alone, as they do on other systems than Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    try:
        with signals.preserve_handlers():
            _connect(address, nodes, verbose=verbose, level=level, dashboard=dashboard)
    except BaseException as error:
        ray.shutdown()
        _unset_variables(added)
        if isinstance(error, SystemExit):  # by Ray's own handler of SIGTERM, before ours was put back
            raise KeyboardInterrupt from None
        raise
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    try:
        yield ClusterInfo(nodes) if address is None else _joined(log)
    finally:
        ray.shutdown()
        _unset_variables(added)


def _unset_variables(added: Iterable[str]) -> None:
    """Take these environment variables back: what holds for a local Ray does not for a cluster joined later."""
    for key in added:
        os.environ.pop(key, None)


def _connect(address: str | None, nodes: list[Node], *, verbose: bool, level: int, dashboard: bool) -> None:
    """Start a local Ray with these nodes' resources, or join the one at the address.

    Raises:
        ConfigError: if no cluster answers there.
    """
    import ray

    common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    if address is None:
        # Without an address Ray would join a cluster that RAY_ADDRESS names or that runs on this machine by chance.
        ray.init(
            address="local",
            num_cpus=int(nodes[0].cpus),
            num_gpus=int(nodes[0].gpus),
            include_dashboard=dashboard,
            **common,
        )
    else:
        check_address(address)
        try:
            with ship_working_dir() as code:
                there = {key: os.environ.get(key, value) for key, value in (ENV_ALL | ENV_CLUSTER).items()}
                ray.init(address=address, runtime_env={"env_vars": there, **code}, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers: {str(error).splitlines()[0]}") from error


def check_address(address: str) -> None:
    """Ask ``HOST:PORT`` whether it is a Ray cluster: Ray itself would go on trying for minutes.

    Args:
        address: as it was given; what Ray looks up itself, such as ``auto``, is not asked.

    Raises:
        ConfigError: if nothing listens there or it is no Ray; if the cluster asks for another token; or if it is for
            Ray's client, through which nobody can ask what nodes have.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address: found {address}, which is for Ray's client; give HOST:PORT of the cluster's head (port 6379) "
            f"from inside its network, or submit the study with `ray job submit` and --address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers: {error}") from error
    _check_is_ray(address)


def _check_is_ray(address: str) -> None:
    """Run ``ray status`` there, in a process: Ray's own client ends its process where nothing answers it."""
    command = shutil.which("ray", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if command is None:
        return  # without Ray's command line the attempt to join tells
    try:
        line = [command, "status", "--address", address]
        status = subprocess.run(line, capture_output=True, text=True, timeout=STATUS_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"--address {address}: something listens there that does not answer as a Ray cluster within "
            f"{STATUS_SECONDS:g} s"
        ) from error
    if "AuthenticationError" in status.stderr:
        raise ConfigError(
            f"--address {address}: the Ray cluster asks for a token that this process does not give; set "
            f"RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    if match := re.search(r"Ray couldn't find an authentication token[^\n]*", status.stderr):
        raise ConfigError(f"--address {address}: {match[0]}")
    if status.returncode:
        last_line = (status.stderr.strip() or "no reason given").splitlines()[-1]
        raise ConfigError(f"--address {address}: no Ray cluster answers: {last_line}")


def _joined(log: Callable[[str], None]) -> ClusterInfo:
    """What the joined cluster can have, where that is known; otherwise what it has once booting nodes are up.

    How many trials run at a time is decided now. Nodes that come later take in waiting trials.
    """
    import ray

    from mbcl.orchestration.cluster import autoscaler
    from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups

    remove_orphaned_groups()  # of sweeps that were killed
    max_nodes = autoscaler.max_nodes()
    present = _nodes() if max_nodes is not None else _wait_for_nodes(log)
    possible = _training_nodes(max_nodes or [])
    resources = ray.cluster_resources()
    for node in max_nodes or []:
        resources |= {key: resources.get(key, 0) or amount for key, amount in node.items()}
    # Nodes may have joined by hand.
    nodes = possible if len(possible) > len(present) else present
    if len(nodes) > len(present):
        log(
            f"nodes that train: the cluster can have {len(nodes)}, {len(present)} are up; others boot when trials need "
            "them"
        )
    placement = Placement(driver="driver" in resources, task="task" in resources)
    return ClusterInfo(nodes, placement, resources.get("driver"))


def _wait_for_nodes(log: Callable[[str], None]) -> list[Node]:
    """The nodes that can train, once none is booting any more."""
    from mbcl.orchestration.cluster.ray_internals import autoscaler_status

    start = time.monotonic()
    last_notified_at = -math.inf
    while True:
        nodes, status, waited = _nodes(), autoscaler_status(), time.monotonic() - start
        # Right after `ray up` the autoscaler has not requested its first nodes yet.
        if not status.num_booting and (nodes or waited > FIRST_REQUEST_SECONDS or not status.present):
            return nodes
        if waited > BOOT_SECONDS:
            late = f"{status.num_booting} nodes have not come up within {BOOT_SECONDS:g} s"
            log(f"note: {late}; the study uses {len(nodes)}")
            return nodes
        if waited - last_notified_at > NOTIFY_SECONDS:
            last_notified_at = waited
            log(f"waiting for nodes: {len(nodes)} can train, {status.num_booting} are booting, {waited:.0f} s so far")
        time.sleep(POLL_SECONDS)


def await_node(resources: dict[str, float], log: Callable[[str], None]) -> None:
    """Wait until a node that trains takes a task.

    Args:
        resources: the custom resources of such nodes.
        log: is told in a line what is waited for.

    Raises:
        ConfigError: if none does.
    """
    import ray

    start = time.monotonic()
    probe = ray.remote(num_cpus=1)(lambda: None).options(resources=resources).remote()
    while not ray.wait([probe], timeout=NOTIFY_SECONDS)[0]:
        waited = time.monotonic() - start
        if waited > BOOT_SECONDS:
            ray.cancel(probe)
            has = ", ".join(f"{count:g} {name}" for name, count in sorted(ray.available_resources().items()))
            raise ConfigError(
                f"--address: no node has had a free CPU for {BOOT_SECONDS:g} s; free are: {has or 'none'}"
            )
        log(f"waiting for a node with a free CPU, {waited:.0f} s so far")


def _nodes() -> list[Node]:
    """The living nodes of the joined cluster that have CPUs for trials."""
    import ray

    return _training_nodes(node["Resources"] for node in ray.nodes() if node["Alive"])


def _training_nodes(nodes: Iterable[Mapping[str, float]]) -> list[Node]:
    return [Node(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes if node.get("CPU", 0) > 0]
