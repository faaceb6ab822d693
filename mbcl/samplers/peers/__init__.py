"""Peer samplers for comparison: published methods by others, and simple baselines."""
