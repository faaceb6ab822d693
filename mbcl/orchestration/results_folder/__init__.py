"""The results folder: its layout, its lock or lease, and its recovery."""
