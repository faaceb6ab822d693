"""The end of a process of a group after an interrupt, whatever else happens to it."""

from __future__ import annotations

import os
import subprocess
import sys

from mbcl.cli.parser import EXIT_INTERRUPTED

BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
START = """
import os, signal, sys, time
from mbcl.cli import group_interrupt
group_interrupt.GRACE_SECONDS = 0.0
"""


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START + code], text=True, timeout=300, check=False, env=BUFFERED, **options
    )


def test_a_closed_output_does_not_keep_the_process():
    reading, writing = os.pipe()
    os.close(reading)
    code = """
group = group_interrupt.GroupInterrupt("goodbye")
sys.stdout.write("a line that nobody reads")
group.leave()
"""
    try:
        done = run(code, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.returncode == EXIT_INTERRUPTED
    assert done.stderr == "goodbye"


def test_only_an_interrupt_ends_the_process():
    code = """
for number in (signal.SIGCHLD, signal.SIGTERM):
    signal.signal(number, lambda *received: None)
group_interrupt.GroupInterrupt("goodbye")
os.kill(os.getpid(), signal.SIGCHLD)
time.sleep(1)
print("still here", flush=True)
os.kill(os.getpid(), signal.SIGTERM)

time.sleep(60)
"""
    done = run(code, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "still here\n", "goodbye")
