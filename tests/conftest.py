"""What holds for the whole suite: one thread of arithmetic, properties on fixed cases, which tests share a process.

pytest-xdist hands the tests out in groups (``--dist loadgroup``), and the heaviest groups come first. Tests that share
what takes long to make are one group: those with the session's local Ray, and those of one module. Other tests on a
real Ray start processes of their own, so each is a group of its own.
"""

from __future__ import annotations

import os

# Children inherit it: command lines, gloo processes, Ray's workers. Two threads on a busy machine also sum otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray gives its workers niceness 15: beside one busy process of another user they get a thirtieth of its share.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("suite")


def _has_module_fixtures(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]  # has no public name
    return any(each[-1].scope == "module" for each in definitions if each)


def _group(item: pytest.Item) -> str | None:
    """The group that a test belongs to; None if it can run beside any other."""
    if item.path.parent.name == "integrations":
        return "integrations"  # a process imports the trainers of others for seconds
    shares_ray = "local_ray" in getattr(item, "fixturenames", ())  # each of pytest's processes starts one
    if item.get_closest_marker("ray") and not shares_ray and not _has_module_fixtures(item):
        return None
    return f"{item.path.parent.name}/{item.path.stem}"


def _weight(item: pytest.Item) -> int:
    if "local_ray" in getattr(item, "fixturenames", ()):
        return 0
    return next((place for place, mark in enumerate(("ray", "dist"), 1) if item.get_closest_marker(mark)), 3)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_weight)
