"""Pairs of functions and their docstrings, from the sources of installed packages."""
