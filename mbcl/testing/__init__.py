"""The contract tests of samplers and objectives, for those that mbcl ships and for those of others.

``check_sampler`` and ``check_objective`` raise an ``AssertionError`` of one line for the first promise that is broken.
``run_on_gloo`` runs a function on real processes. None of them needs a test framework.
"""

from mbcl.testing._extremes import extreme_embeddings
from mbcl.testing._gloo import run_on_gloo
from mbcl.testing._objectives import check_objective
from mbcl.testing._samplers import check_sampler

__all__ = ["check_objective", "check_sampler", "extreme_embeddings", "run_on_gloo"]
