"""Command lines. ``mbcl`` is :func:`main`."""

from mbcl.cli.app import main

__all__ = ["main"]
