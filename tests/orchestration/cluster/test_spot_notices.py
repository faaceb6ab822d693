"""Preemption notices of clouds, from a fake metadata service to Ray."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from patience import PATIENCE

from mbcl.orchestration.cluster import spot_notices

pytest.importorskip("ray")


class Metadata(BaseHTTPRequestHandler):
    """A fake metadata service of a cloud."""

    going = False

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("a-token")

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            when = datetime.now(UTC) + timedelta(seconds=100)
            text = json.dumps({"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"})
            self._answer(text if self.going else None)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer("TRUE" if self.going else "FALSE")

    def _answer(self, text: str | None) -> None:
        self.send_response(200 if text is not None else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def metadata(monkeypatch):
    monkeypatch.setattr(spot_notices, "ANSWER_SECONDS", PATIENCE)

    class Own(Metadata): ...

    server = HTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Own, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("cloud", "seconds"), [(spot_notices.aws, 100), (spot_notices.google, 30)])
def test_watch_repeats_a_spot_notice_until_ray_accepts_it(metadata, cloud, seconds):
    from ray.exceptions import AuthenticationError, RaySystemError, RpcError

    handler, address = metadata
    assert cloud(address) is None
    handler.going = True
    notices: list[float] = []
    troubles = [ConnectionError("no Ray yet"), RpcError("unavailable"), RaySystemError("x"), AuthenticationError("x")]

    def notify(left: float) -> None:
        notices.append(left)
        if troubles:
            raise troubles.pop()

    start = time.monotonic()
    spot_notices.watch(lambda: cloud(address), notify, poll=0.01)
    assert len(notices) == 5
    # The notice of AWS has a resolution of one second.
    assert seconds - 1 - (time.monotonic() - start) <= notices[0] <= seconds


def test_watch_polls_again_without_a_metadata_address(metadata):
    events = []

    def poll() -> float | None:
        events.append(1)
        return spot_notices.aws("http://127.0.0.1:1") if len(events) < 3 else 5.0

    spot_notices.watch(poll, events.append, poll=0.01)
    assert events == [1, 1, 1, 5.0]
