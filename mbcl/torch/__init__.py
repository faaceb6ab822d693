"""Planned batches in your own PyTorch loop, on one rank or several.

:class:`PlannedBatchSampler` yields the batches of a plan to a ``DataLoader``; :class:`Replanner` plans them again while
the loop trains. Importing this package loads torch, NumPy, SciPy and scikit-learn only.
"""

from mbcl.torch._batch_sampler import PlannedBatchSampler
from mbcl.torch._replanner import Replanner

__all__ = ["PlannedBatchSampler", "Replanner"]
