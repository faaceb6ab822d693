"""Corrupted test sets: the official files, in the order of the clean images."""
