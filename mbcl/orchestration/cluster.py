"""Starting a local Ray or joining one, quietly, and what its nodes have."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mbcl.errors import ConfigError
from mbcl.orchestration.resources import Node

COMMON = {
    # An epoch is reported at most this late, and a training run ends this much sooner than with the default of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Relative data folders mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
LOCAL = {
    # Nobody takes this machine away with a notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Processes that planned or evaluated wait for the next trial: each has imported torch for some seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
HERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The sweep handles interrupts itself, and never reads Tune's own snapshots.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextmanager
def cluster(address: str | None, nodes: list[Node], *, verbose: bool) -> Iterator[list[Node]]:
    """A Ray for the time of the block: a local one that ends with it, or the one at ``address``.

    Args:
        address: of a running cluster, or None.
        nodes: what a local Ray may use.
        verbose: whether Ray may talk.

    Yields:
        The nodes that trials can use.

    Raises:
        ConfigError: if no cluster answers at ``address``.
    """
    for key, value in {**HERE, **({} if address else LOCAL | COMMON)}.items():
        os.environ.setdefault(key, value)
    level = logging.INFO if verbose else logging.ERROR
    if address is None and "ray" not in sys.modules:
        # A token that only this user can read; without it any user of this machine could run code as this one. Ray does
        # so by itself, but warns; and it reads the mode once, when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    common: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    if address is None:
        ray.init(num_cpus=int(nodes[0].cpus), num_gpus=int(nodes[0].gpus), include_dashboard=False, **common)
    else:
        try:
            ray.init(address=address, runtime_env={"env_vars": COMMON}, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers: {str(error).splitlines()[0]}") from error
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    try:
        yield nodes if address is None else _nodes()
    finally:
        ray.shutdown()


def _nodes() -> list[Node]:
    """The living nodes of the joined cluster that have CPUs for trials."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(found.get("CPU", 0), found.get("GPU", 0)) for found in alive if found.get("CPU", 0) > 0]
