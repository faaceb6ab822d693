"""Passes the preemption notice of a spot node on to Ray; runs next to Ray on every spot node.

Clouds announce the preemption of a machine on its metadata server: AWS two minutes before, Google thirty seconds. Ray
does not poll it. Ray schedules nothing new on a drained node and notifies the trainings that run there, which write a
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
    """Return the seconds until this AWS machine is preempted; None without a notice."""
    token = _request(f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    notice = _request(f"{address}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if notice is None:
        return None
    preempted_at = datetime.strptime(loads(notice)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, (preempted_at - datetime.now(UTC)).total_seconds())


def google(address: str = GOOGLE) -> float | None:
    """Return the seconds until this Google machine is preempted; None without a notice."""
    preempted = _request(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GOOGLE_SECONDS if preempted == "TRUE" else None


CLOUDS: dict[str, Callable[[], float | None]] = {"aws": aws, "gcp": google}


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """Return the body of the response; None if the status is 404: there is no notice yet."""
    try:
        with _open(Request(url, headers=headers, method=method), timeout=ANSWER_SECONDS) as response:
            return str(response.read().decode()).strip()
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def drain(seconds: float, node: str = "") -> None:
    """Join the Ray of this machine if necessary, and drain a node; arguments as for :func:`.drain_this_node`.

    Raises:
        ConnectionError: if no Ray runs on this machine, or it rejects the notice.
    """
    import ray

    from mbcl.orchestration.cluster.ray_internals import drain_this_node

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    drain_this_node(seconds, node)


def watch(
    read_notice: Callable[[], float | None], pass_on: Callable[[float], None], *, poll: float = POLL_SECONDS
) -> None:
    """Poll for the notice every ``poll`` seconds and pass it on, with retries until both have succeeded.

    ``read_notice`` returns the seconds until the preemption, which ``pass_on`` takes; None without a notice.
    """
    while True:
        try:
            seconds = read_notice()
            if seconds is not None:
                logger.warning("this node goes in %.0f s", seconds)
                pass_on(seconds)
                return
        except Exception as error:
            # Any exception: Ray's errors have no common base class, and a dead watcher would miss the notice.
            logger.warning("no word of this node's end could be had or passed on: %s", error)
        time.sleep(poll)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns once the notice was passed on."""
    parser = argparse.ArgumentParser(prog="python -m mbcl.orchestration.spot", description=__doc__)
    parser.add_argument("cloud", choices=sorted(CLOUDS))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    watch(CLOUDS[options.cloud], drain)
    return 0
