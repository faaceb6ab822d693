"""Metrics: what a representation is judged by."""

from mbcl.metrics._retrieval import ranks, retrieval

__all__ = ["ranks", "retrieval"]
