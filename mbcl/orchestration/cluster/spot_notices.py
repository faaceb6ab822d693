"""Tells Ray that this node will be taken away; runs beside Ray on every spot node.

Clouds announce the end of a spot machine at an address of its own: AWS two minutes before, Google thirty seconds. Ray
does not look there. A node that is drained gets nothing new to do, and trainings that run on it are told and write a
checkpoint.

    python -m mbcl.orchestration.spot aws
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from json import loads
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

logger = logging.getLogger(__name__)

AWS = "http://169.254.169.254"
"""Instance metadata, version 2: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
GOOGLE = "http://metadata.google.internal"
"""https://cloud.google.com/compute/docs/instances/create-use-spot"""
GOOGLE_SECONDS = 30
POLL_SECONDS = 5.0
ANSWER_SECONDS = 2.0

_open = build_opener(ProxyHandler({})).open


def aws(address: str = AWS) -> float | None:
    """Seconds until this AWS machine is taken away, None as long as nothing is known of it."""
    token = _ask(f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    answer = _ask(f"{address}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if answer is None:
        return None
    when = datetime.strptime(loads(answer)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def google(address: str = GOOGLE) -> float | None:
    """Seconds until this machine of Google's is taken away, None as long as nothing is known of it."""
    answer = _ask(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GOOGLE_SECONDS if answer == "TRUE" else None


CLOUDS: dict[str, Callable[[], float | None]] = {"aws": aws, "gcp": google}


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The answer, or None if there is no such thing (yet)."""
    try:
        with _open(Request(url, headers=headers, method=method), timeout=ANSWER_SECONDS) as answer:
            return str(answer.read().decode()).strip()
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def drain(seconds: float, node: str = "") -> None:
    """Tell Ray that a node will be gone in so many seconds.

    Args:
        seconds: from now.
        node: its id in Ray; this node by default.

    Raises:
        ConnectionError: if no Ray answers here, or it does not take the notice.
    """
    import ray

    from mbcl.orchestration.cluster.ray_internals import drain_this_node

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    drain_this_node(seconds, node)


def watch(look: Callable[[], float | None], tell: Callable[[float], None], *, poll: float = POLL_SECONDS) -> None:
    """Wait for the notice, then tell Ray, as often as that needs."""
    told = False
    while not told:
        try:
            seconds = look()
            if seconds is not None:
                logger.warning("this node goes in %.0f s", seconds)
                tell(seconds)
                told = True
        except Exception as error:
            # Whatever it is: Ray's own errors have no common base, and a watcher that has died says nothing any more.
            logger.warning("no word of this node's end could be had or passed on: %s", error)
        if not told:
            time.sleep(poll)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line until the notice was passed on."""
    parser = argparse.ArgumentParser(prog="python -m mbcl.orchestration.spot", description=__doc__)
    parser.add_argument("cloud", choices=sorted(CLOUDS))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    watch(CLOUDS[options.cloud], drain)
    return 0
