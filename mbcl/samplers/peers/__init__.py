"""Samplers by others and by simpler ideas, to compare with."""
