"""The Ray that a study starts for itself: nobody else can reach it."""

from __future__ import annotations

import ipaddress
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ..helpers import apart, children

pytestmark = pytest.mark.ray

LISTENING = "0A"


def listening(pids: list[int]) -> dict[str, str]:
    """What the processes listen at: address by the process's title."""
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING:
                sockets[f"socket:[{words[9]}]"] = _address(words[1])
    found = {}
    for pid in pids:
        for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
            address = sockets.get(os.readlink(descriptor)) if descriptor.is_symlink() else None
            if address:
                title = (Path("/proc") / str(pid) / "cmdline").read_text().split("\0")[0]
                found[f"{Path(title).name} {address}"] = address.rpartition(" ")[0]
    return found


def _address(text: str) -> str:
    """``IP PORT`` out of the kernel's words: the bytes of every 32 bits are the other way round."""
    host, port = text.split(":")
    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    return f"{ipaddress.ip_address(b''.join(words))} {int(port, 16)}"


def look() -> dict[str, Any]:
    """In a process that has not imported Ray before, like that of the main job."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    with cluster(None, [Node(1)], verbose=False):
        import ray

        assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1
        pids = [os.getpid(), *children(os.getpid())]
        return {"listening": listening(pids), "mode": os.environ["RAY_AUTH_MODE"], "processes": len(pids)}


def test_it_listens_on_the_loopback_and_asks_for_a_token():
    pytest.importorskip("ray")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    seen = apart("cluster.test_local_ray", "look()", environment=environment)
    assert seen["mode"] == "token"
    assert len(seen["listening"]) >= 3, seen
    hosts = {name: ipaddress.ip_address(host) for name, host in seen["listening"].items()}
    public = [name for name, host in hosts.items() if not (getattr(host, "ipv4_mapped", None) or host).is_loopback]
    assert public == []


def interrupted() -> list[str]:
    """What SIGTERM and SIGINT do as soon as Ray is there, and the settings for it that are left when it is gone."""
    from mbcl.orchestration import signals
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import ENV_ALL, ENV_DRIVER, ENV_LOCAL, cluster

    seen = []
    for number in signals.SIGNALS:
        signals.install_handlers(reset=True)
        try:
            with cluster(None, [Node(1)], verbose=False):
                os.kill(os.getpid(), number)
                time.sleep(5)
                seen.append("went on")
        except BaseException as error:
            seen.append(type(error).__name__)
    return seen + [key for key in ENV_DRIVER | ENV_LOCAL | ENV_ALL if key in os.environ]


def test_neither_its_handlers_of_signals_nor_its_settings_outlive_it():
    assert apart("cluster.test_local_ray", "interrupted()") == ["KeyboardInterrupt"] * 2
