"""The examples in the docstrings of layers 0 to 3 are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("functional", "objectives", "samplers", "metrics", "optim", "synthetic", "testing")


def modules(package: str) -> list[str]:
    found = importlib.import_module(f"mbcl.{package}")
    return [module.name for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}.")]


@pytest.mark.parametrize(
    "names", [["mbcl", "mbcl.registry", "mbcl.seeding", "mbcl.plan"], *map(modules, PACKAGES)], ids=("", *PACKAGES)
)
def test_examples(names: list[str]) -> None:
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 0
