"""Connecting to Ray: a local Ray or a joined cluster, with little output, and the capacity of its nodes."""

from __future__ import annotations

import functools
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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbcl.errors import ConfigError, pluralize
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node
from mbcl.orchestration.cluster.local_files import RayStartError, private_folder, set_token
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.cluster.ray_environment import ENV_ALL, ENV_CLUSTER, ENV_DRIVER, ENV_LOCAL
from mbcl.orchestration.cluster.ship_code import ship_working_dir

BOOT_SECONDS = 900.0
"""How long nodes that an autoscaler has requested may take to boot."""
FIRST_REQUEST_SECONDS = 20.0
"""How long an autoscaler may take to request the first node."""
NOTIFY_SECONDS = 30.0
"""Interval of log lines while waiting."""
POLL_SECONDS = 2.0
CONNECT_SECONDS = 10.0
"""Timeout of a TCP connection to the cluster."""
STATUS_SECONDS = 120.0
"""Timeout of ``ray status``, which first imports Ray."""


@dataclass(frozen=True)
class ClusterInfo:
    """The capacity of a running Ray.

    Args:
        nodes: the nodes for trials; of an autoscaled cluster, at its maximum size.
        placement: the nodes that run the drivers, planners and tasks of trials.
        drivers: the cluster's amount of the custom resource ``driver``; None if no node offers it.
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
    """Connect to Ray for the block: to a local one that ends with the block, or to the cluster at ``address``.

    Args:
        address: address of a running cluster, or None.
        nodes: the node for a local Ray.
        verbose: whether Ray may print.
        log: takes a line about what is waited for.
        dashboard: whether a local Ray starts its dashboard, which mbcl does not use.

    Yields:
        The capacity of the cluster.

    Raises:
        ConfigError: if no cluster answers at ``address``.
    """
    variables = {**ENV_DRIVER, **({} if address else ENV_LOCAL | ENV_ALL)}
    added = {key: value for key, value in variables.items() if key not in os.environ}
    os.environ.update(added)
    level = logging.INFO if verbose else logging.ERROR
    if address is None and "ray" not in sys.modules:
        set_token()  # Ray reads it once, at its import: the main job does not import it before (on_ray.py)
        # Ray's services then listen on the loopback only, as they do on other systems than Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    with private_folder() if address is None else nullcontext() as folder:
        try:
            try:
                with signals.preserve_handlers():
                    _connect(address, nodes, folder, verbose=verbose, level=level, dashboard=dashboard)
            except SystemExit:  # from Ray's handler of SIGTERM, before ours was restored
                raise KeyboardInterrupt from None
            for name in ("ray", "ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(level)
            yield ClusterInfo(nodes) if address is None else _cluster_info(log)
        finally:
            ray.shutdown()
            for key in added:  # they must not leak into a cluster that this process joins later
                os.environ.pop(key, None)


def _connect(
    address: str | None, nodes: list[Node], folder: Path | None, *, verbose: bool, level: int, dashboard: bool
) -> None:
    """Start a local Ray with this node's resources, or join the cluster at the address.

    Raises:
        ConfigError: if no cluster answers there.
    """
    import ray
    from ray.exceptions import RayError

    common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    if address is None:
        assert folder is not None
        try:
            # Without an address Ray would join the cluster of RAY_ADDRESS or one that happens to run on this machine.
            ray.init(
                address="local",
                num_cpus=int(nodes[0].cpus),
                num_gpus=int(nodes[0].gpus),
                include_dashboard=dashboard,
                _temp_dir=str(folder),
                **common,
            )
        except (OSError, RuntimeError, ValueError, KeyError, RayError) as error:
            raise RayStartError(_explain_start(error, folder)) from error
    else:
        check_address(address)
        try:
            with ship_working_dir() as code:
                env_vars = {key: os.environ.get(key, value) for key, value in (ENV_ALL | ENV_CLUSTER).items()}
                ray.init(address=address, runtime_env={"env_vars": env_vars, **code}, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers: {str(error).splitlines()[0]}") from error


def _explain_start(error: BaseException, folder: Path) -> str:
    """Describe why a local Ray did not start, with what can be done."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"Ray did not start: {type(error).__name__}: {reason}; its logs are in {folder}. It needs memory, disk and "
        f"processes (ulimit -u); TMPDIR names another folder for its files, --verbose shows its output"
    )


def check_address(address: str) -> None:
    """Check that a Ray cluster answers at ``HOST:PORT``, because ``ray.init`` would retry for minutes.

    Args:
        address: the value of ``--address``; addresses that Ray resolves itself, such as ``auto``, are not checked.

    Raises:
        ConfigError: if nothing listens there or it is not Ray; if the cluster requires another token; or if the
            address is one of Ray's client, which cannot query the resources of nodes.
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


@functools.cache  # checked before the results folder is made, and again before joining
def _check_is_ray(address: str) -> None:
    """Run ``ray status`` in a subprocess, because Ray's client ends its own process if nothing answers."""
    command = shutil.which("ray", path=str(Path(sys.executable).parent))  # another installation has another version
    if command is None:
        return  # ray.init decides
    try:
        arguments = [command, "status", "--address", address]
        status = subprocess.run(arguments, capture_output=True, text=True, timeout=STATUS_SECONDS)
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
    last_line = (status.stderr.strip() or "no reason given").splitlines()[-1]
    if "Version mismatch" in status.stderr or "version mismatch" in status.stderr:
        raise ConfigError(f"--address {address}: the cluster runs another version of Ray: {last_line}")
    if status.returncode and ("RpcError" in status.stderr or "Failed to connect" in status.stderr):
        raise ConfigError(
            f"--address {address}: something listens there that does not answer as a Ray cluster: {last_line}"
        )
    # Any other failure of the report, for example of its autoscaler part, is no reason not to join.


def _cluster_info(log: Callable[[str], None]) -> ClusterInfo:
    """Return the maximum capacity of the joined cluster; if it is unknown, the capacity once no node is booting.

    The number of concurrent trials is derived from it once. Nodes that boot later run trials that wait until then.
    """
    import ray

    from mbcl.orchestration.cluster import autoscaler
    from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups

    remove_orphaned_groups()  # of killed sweeps, so that their resources are free
    max_nodes = autoscaler.max_nodes()
    present = _present_nodes() if max_nodes is not None else _wait_for_nodes(log)
    maximum = _training_nodes(max_nodes or [])
    resources = ray.cluster_resources()
    for node in max_nodes or []:
        resources |= {key: resources.get(key, 0) or amount for key, amount in node.items()}
    # More nodes than the autoscaler's maximum may be present: nodes that joined by hand.
    nodes = maximum if len(maximum) > len(present) else present
    if len(nodes) > len(present):
        log(
            f"nodes that train: the cluster can have {len(nodes)}, {len(present)} are up; others boot when trials need "
            "them"
        )
    placement = Placement(driver="driver" in resources, task="task" in resources)
    return ClusterInfo(nodes, placement, resources.get("driver"))


def _wait_for_nodes(log: Callable[[str], None]) -> list[Node]:
    """Wait until no node is booting, at most :data:`BOOT_SECONDS`; return the nodes that can train."""
    from mbcl.orchestration.cluster.ray_internals import autoscaler_status

    start = time.monotonic()
    last_notified_at = -math.inf
    while True:
        nodes, status, waited = _present_nodes(), autoscaler_status(), time.monotonic() - start
        # Right after `ray up` the autoscaler has not requested its first nodes yet.
        if not status.num_booting and (nodes or waited > FIRST_REQUEST_SECONDS or not status.present):
            return nodes
        if waited > BOOT_SECONDS:
            booting = f"{pluralize(status.num_booting, 'node')} {'has' if status.num_booting == 1 else 'have'}"
            problem = f"{booting} not come up within {BOOT_SECONDS:g} s"
            log(f"note: {problem}; the study uses {len(nodes)}")
            return nodes
        if waited - last_notified_at > NOTIFY_SECONDS:
            last_notified_at = waited
            log(f"waiting for nodes: {len(nodes)} can train, {status.num_booting} are booting, {waited:.0f} s so far")
        time.sleep(POLL_SECONDS)


def await_node(resources: dict[str, float], log: Callable[[str], None]) -> None:
    """Wait until a node that trains, which the custom ``resources`` select, has run a task.

    Raises:
        ConfigError: if no node has run it within :data:`BOOT_SECONDS`.
    """
    import ray

    start = time.monotonic()
    probe = ray.remote(num_cpus=1)(lambda: None).options(resources=resources).remote()
    while not ray.wait([probe], timeout=NOTIFY_SECONDS)[0]:
        waited = time.monotonic() - start
        if waited > BOOT_SECONDS:
            ray.cancel(probe)
            free = ", ".join(f"{count:g} {name}" for name, count in sorted(ray.available_resources().items()))
            raise ConfigError(
                f"--address: no node has had a free CPU for {BOOT_SECONDS:g} s; free are: {free or 'none'}"
            )
        log(f"waiting for a node with a free CPU, {waited:.0f} s so far")


def _present_nodes() -> list[Node]:
    """Return the alive nodes of the joined cluster that offer CPUs."""
    import ray

    return _training_nodes(node["Resources"] for node in ray.nodes() if node["Alive"])


def _training_nodes(nodes: Iterable[Mapping[str, float]]) -> list[Node]:
    """Return the nodes that offer CPUs; the head of a cluster usually offers none."""
    return [Node(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes if node.get("CPU", 0) > 0]
