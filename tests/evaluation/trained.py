"""The trial that the tests of this folder evaluate."""

from engine import runs

CONTENT = runs.experiment(train={"epochs": 2, "batch_size": 16, "precision": "float64"})
"""In float64 no two scores are so close that rounding swaps their ranks."""
