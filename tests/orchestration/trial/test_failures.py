"""The line about a failed trial has the substance of the error."""

from __future__ import annotations

import os

import pydantic
import pytest

from mbcl.errors import ConfigError
from mbcl.orchestration.trial.failures import describe_error, full_text


class Mode(pydantic.BaseModel):
    mode: int


def error_of(raising) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of any type
        raising()
    return caught.value


def test_errors_are_one_line_with_the_substance():
    invalid = describe_error(error_of(lambda: Mode(mode="off")))
    assert invalid.startswith("ValidationError: Mode.mode: Input should be a valid integer")
    assert invalid.endswith("found 'off'")
    assert describe_error(RuntimeError("no room\nException raised from f.cpp:3\n  frame 1")) == "RuntimeError: no room"
    assert describe_error(RuntimeError("Error(s) in loading:\n\tMissing key(s) a")).endswith(
        "loading: Missing key(s) a"
    )
    assert describe_error(ConfigError("key: two\nlines")) == "key: two lines"
    assert describe_error(RuntimeError()) == "RuntimeError"


def test_full_text_has_the_tracebacks_of_the_error_and_its_causes():
    def outer():
        try:
            {}["missing"]
        except KeyError as error:
            raise RuntimeError("the plan is gone") from error

    text = full_text(error_of(outer))
    assert "KeyError: 'missing'" in text
    assert "in outer" in text
    assert text.rstrip().endswith("RuntimeError: the plan is gone")


@pytest.mark.parametrize(
    "text",
    [
        "1 worker(s) were killed due to the node running low on memory. \nMemory on the node (IP: 10.0.0.1, ID: 3f) "
        "was 30.12GB used / 31.20GB limit (0.965385)\nObject store memory usage: [0]\n",  # Ray 2.60
        "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.1, ID: 3f) where "
        "the task (train) was running was 30.12GB / 31.20GB (0.965385), which exceeds the threshold of 0.95. Ray "
        "killed this worker\nRefer to the documentation: https://docs.ray.io/en/latest/ray-core/scheduling.html\n",
    ],
)
def test_lack_of_memory_is_described_with_its_amounts_and_what_takes_less(text):
    from ray.exceptions import OutOfMemoryError

    assert describe_error(OutOfMemoryError(text)) == (
        "killed for lack of memory: 30.12 of 31.20 GB were in use; fewer trials at a time take less "
        "(resources.max_concurrent_trials)"
    )


def test_a_lost_process_is_described_without_guesses():
    text = (
        "The actor died.\n\tclass_name: X\nWorker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with a "
        "connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer"
    )
    assert describe_error(RuntimeError(text)).startswith(
        "a process was lost: Worker exits with a connection error code 2. End of file (`dmesg` says"
    )


@pytest.mark.ray
def test_a_process_that_ray_loses_is_described_in_one_line(local_ray):
    import ray

    end = ray.remote(max_retries=0)(lambda: os._exit(3))
    line = describe_error(error_of(lambda: ray.get(end.remote())))
    assert "\n" not in line
    assert len(line) < 300
    assert "causes" not in line
