"""The examples in the docstrings of layers 0 to 3 are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("functional", "objectives", "samplers", "metrics", "optim", "synthetic")


def modules() -> list[str]:
    names = ["mbcl", "mbcl.registry", "mbcl.seeding", "mbcl.plan"]
    for package in PACKAGES:
        found = importlib.import_module(f"mbcl.{package}")
        names += [f"mbcl.{package}.{module.name}" for module in pkgutil.iter_modules(found.__path__)]
    return names


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_examples(package: str) -> None:
    names = [name for name in modules() if name.startswith(f"mbcl.{package}.")]
    assert sum(doctest.testmod(importlib.import_module(name)).attempted for name in names) > 0
