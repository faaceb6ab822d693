"""Batch plans outside training: the command ``mbcl plan``."""
