"""Data sets by name, and what reads their official files."""
