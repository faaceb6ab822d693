"""Command lines. :func:`main` is the entry point of ``mbcl``."""

from mbcl.cli.app import main

__all__ = ["main"]
