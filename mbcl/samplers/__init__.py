"""Samplers: they decide which samples share a mini-batch.

``build(name, batch_size=B, **parameters)`` makes a sampler by its name or published alias. To add one, write a module
with one class, register the class under a name, and import it here; configuration, command line and tests read the
registry.
"""

from mbcl.samplers._base import (
    SAMPLERS,
    FloatArray,
    Ids,
    PoolFunction,
    PoolItem,
    PoolMap,
    PoolPlan,
    Sampler,
    build,
    check_one_width,
    check_plan,
    check_widths,
    serial,
)
from mbcl.samplers._exhaustive import AllBatches, Full, OSGDExhaustive, combinations, hardest_batches
from mbcl.samplers._grouped import Grouped, groups_of, with_groups
from mbcl.samplers._kmeans import KMeans, Refined
from mbcl.samplers._measures import equal_pairs, overlap, same_class_share, upper_bound
from mbcl.samplers._osgd import OSGD
from mbcl.samplers._pool_items import PoolItems
from mbcl.samplers._pools import PoolSampler
from mbcl.samplers._quality import quality
from mbcl.samplers._random import Fixed, Shuffle
from mbcl.samplers._spectral import Spectral
from mbcl.samplers._threads import one_thread
from mbcl.samplers.peers._bisection import Bisection
from mbcl.samplers.peers._chain import Chain
from mbcl.samplers.peers._diverse import Diverse
from mbcl.samplers.peers._gcbs import GCBS
from mbcl.samplers.peers._metis import Metis
from mbcl.samplers.peers._strata import Strata
from mbcl.samplers.peers._walk import Walk

__all__ = [
    "GCBS",
    "OSGD",
    "SAMPLERS",
    "AllBatches",
    "Bisection",
    "Chain",
    "Diverse",
    "Fixed",
    "FloatArray",
    "Full",
    "Grouped",
    "Ids",
    "KMeans",
    "Metis",
    "OSGDExhaustive",
    "PoolFunction",
    "PoolItem",
    "PoolItems",
    "PoolMap",
    "PoolPlan",
    "PoolSampler",
    "Refined",
    "Sampler",
    "Shuffle",
    "Spectral",
    "Strata",
    "Walk",
    "build",
    "check_one_width",
    "check_plan",
    "check_widths",
    "combinations",
    "equal_pairs",
    "groups_of",
    "hardest_batches",
    "one_thread",
    "overlap",
    "quality",
    "same_class_share",
    "serial",
    "upper_bound",
    "with_groups",
]
