"""Measurements that ship with the package: ``mbcl bench``."""
