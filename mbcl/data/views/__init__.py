"""Augmented views of images: random parameters and transforms."""
