"""Starting a local Ray or joining one, quietly, and what its nodes have."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mbcl.errors import ConfigError
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.capacity import Node
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.cluster.ship_code import ship_working_dir

ENV_ALL = {
    # An epoch is reported at most this late, and a training run ends this much sooner than with the default of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Relative data folders mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
ENV_LOCAL = {
    # Nobody takes this machine away with a notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Processes that planned or evaluated wait for the next trial: each has imported torch for some seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
ENV_CLUSTER = {
    # A spot node that was taken away is replaced by one that has to boot.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}
BOOT_SECONDS = 900.0
"""How long nodes that an autoscaler has asked for may take to boot."""
FIRST_REQUEST_SECONDS = 20.0
"""How long an autoscaler may take to ask for the first node that is needed."""
NOTIFY_SECONDS = 30.0
"""How often a person is told what is waited for."""
POLL_SECONDS = 2.0
CONNECT_SECONDS = 10.0
"""How long a cluster may take to accept a connection, and to answer."""
ENV_DRIVER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The sweep handles interrupts itself, and never reads Tune's own snapshots.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Tune would write tables and TensorBoard files of its own.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


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
    """Ask what listens there as Ray's processes ask each other. Ray's own client of it ends the process in the end."""
    import grpc
    from ray._private.gcs_utils import create_gcs_channel  # noqa: TID251
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]  # made when loaded  # noqa: TID251
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub  # noqa: TID251
    from ray.exceptions import AuthenticationError

    try:
        with create_gcs_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=CONNECT_SECONDS)
    except AuthenticationError as error:
        raise ConfigError(f"--address {address}: {' '.join(str(error).split())}") from error
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise ConfigError(
                f"--address {address}: the Ray cluster asks for a token that this process does not give; set "
                f"RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
            ) from error
        raise ConfigError(
            f"--address {address}: something listens there that does not answer as a Ray cluster: {error.details()}"
        ) from error


def _joined(log: Callable[[str], None]) -> ClusterInfo:
    """What the joined cluster has, or can have if that is known; otherwise after what is booting has come up.

    How many trials run at a time is decided now. Nodes that come later take in waiting trials.
    """
    import ray

    from mbcl.orchestration.cluster import autoscaler
    from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups

    remove_orphaned_groups()  # of sweeps that were killed
    at_most = autoscaler.max_nodes()
    up = _nodes()
    if at_most is None:
        up = _when_up(log)
    possible = _of_trials(at_most or [])
    offered = ray.cluster_resources()
    for resources in at_most or []:
        offered |= {key: offered.get(key, 0) or value for key, value in resources.items()}
    # Nodes may have joined by hand.
    nodes = possible if len(possible) > len(up) else up
    if len(nodes) > len(up):
        log(f"nodes that train: the cluster can have {len(nodes)}, {len(up)} are up; others boot when trials need them")
    return ClusterInfo(nodes, Placement(driver="driver" in offered, task="task" in offered), offered.get("driver"))


def _when_up(log: Callable[[str], None]) -> list[Node]:
    """The nodes that can train when none is booting any more."""
    from mbcl.orchestration.cluster import autoscaler

    start = time.monotonic()
    told = -math.inf
    while True:
        nodes, booting, waited = _nodes(), autoscaler.num_booting_nodes(), time.monotonic() - start
        # Right after `ray up` the autoscaler has not asked for its first nodes yet.
        if not booting and (nodes or waited > FIRST_REQUEST_SECONDS or not autoscaler.is_present()):
            return nodes
        if waited > BOOT_SECONDS:
            log(f"note: {booting} nodes have not come up within {BOOT_SECONDS:g} s; the study uses {len(nodes)}")
            return nodes
        if waited - told > NOTIFY_SECONDS:
            told = waited
            log(f"waiting for nodes: {len(nodes)} can train, {booting} are booting, {waited:.0f} s so far")
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

    return _of_trials(node["Resources"] for node in ray.nodes() if node["Alive"])


def _of_trials(resources: Iterable[Mapping[str, float]]) -> list[Node]:
    return [Node(found.get("CPU", 0), found.get("GPU", 0)) for found in resources if found.get("CPU", 0) > 0]
