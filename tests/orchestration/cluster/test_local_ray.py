"""The Ray that a study starts for itself: no other machine can reach it."""

from __future__ import annotations

import ipaddress
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ..helpers import apart, descendants

pytestmark = pytest.mark.ray

LISTENING = "0A"


def listening_addresses(pids: list[int]) -> dict[str, str]:
    """The addresses at which the processes listen, by their titles."""
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                sockets[f"socket:[{fields[9]}]"] = _address(fields[1])
    addresses = {}
    for pid in pids:
        for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
            address = sockets.get(os.readlink(descriptor)) if descriptor.is_symlink() else None
            if address:
                title = (Path("/proc") / str(pid) / "cmdline").read_text().split("\0")[0]
                addresses[f"{Path(title).name} {address}"] = address.rpartition(" ")[0]
    return addresses


def _address(text: str) -> str:
    """``IP PORT`` from the hexadecimal text of the kernel, which swaps the bytes of every 32 bits."""
    host, port = text.split(":")
    chunks = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    return f"{ipaddress.ip_address(b''.join(chunks))} {int(port, 16)}"


def start_and_inspect() -> dict[str, Any]:
    """Start a local Ray in this process, as the main job does, and return its addresses and mode."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.tune.on_ray import cluster  # as the main job imports it

    with cluster(None, [Node(1)], verbose=False):
        import ray

        assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1
        pids = [os.getpid(), *descendants(os.getpid())]
        return {"listening": listening_addresses(pids), "mode": os.environ["RAY_AUTH_MODE"], "processes": len(pids)}


def test_local_ray_listens_on_the_loopback_and_needs_a_token():
    pytest.importorskip("ray")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    state = apart("cluster.test_local_ray", "start_and_inspect()", environment=environment)
    assert state["mode"] == "token"
    assert len(state["listening"]) >= 3, state
    hosts = {name: ipaddress.ip_address(host) for name, host in state["listening"].items()}
    public = [name for name, host in hosts.items() if not (getattr(host, "ipv4_mapped", None) or host).is_loopback]
    assert public == []


def interrupt_local_ray() -> list[str]:
    """The effect of SIGTERM and SIGINT once Ray runs, and the environment variables that are left after it."""
    from mbcl.orchestration import signals
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import ENV_ALL, ENV_DRIVER, ENV_LOCAL, cluster

    outcomes = []
    for number in signals.SIGNALS:
        signals.install_handlers(reset=True)
        try:
            with cluster(None, [Node(1)], verbose=False):
                os.kill(os.getpid(), number)
                time.sleep(5)
                outcomes.append("went on")
        except BaseException as error:
            outcomes.append(type(error).__name__)
    return outcomes + [key for key in ENV_DRIVER | ENV_LOCAL | ENV_ALL if key in os.environ]


def test_local_ray_leaves_no_signal_handlers_or_variables():
    assert apart("cluster.test_local_ray", "interrupt_local_ray()") == ["KeyboardInterrupt"] * 2
