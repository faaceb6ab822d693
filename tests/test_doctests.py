"""The doctests of the mathematical packages pass."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = (
    "study",
    "functional",
    "objectives",
    "samplers",
    "metrics",
    "optim",
    "data",
    "synthetic",
    "testing",
    "torch",
)


def modules(package: str) -> list[str]:
    root = importlib.import_module(f"mbcl.{package}")
    return [module.name for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]


@pytest.mark.parametrize(
    "names", [["mbcl", "mbcl.registry", "mbcl.seeding", "mbcl.plan"], *map(modules, PACKAGES)], ids=("", *PACKAGES)
)
def test_doctests_pass(names: list[str]) -> None:
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 0
