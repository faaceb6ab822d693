"""Planned batches in your own PyTorch loop."""
