"""Loops that NumPy and torch cannot express as array operations, compiled by numba.

The modules of this package import numba, which takes time: samplers import them while they plan.
"""
