"""Objectives: the contrastive losses of a batch of two views.

``build(name, **parameters)`` makes an objective by its name or published alias. To add one, write a module with one
class, register the class under a name, and import it here; configuration, command line and tests read the registry.
"""

from mbcl.objectives._base import OBJECTIVES, Candidates, Distribution, Objective, build
from mbcl.objectives._clip import CLIP
from mbcl.objectives._dcl import DCL
from mbcl.objectives._hcl import HCL
from mbcl.objectives._simclr import SimCLR
from mbcl.objectives._sogclr import SogCLR
from mbcl.objectives._stateful import StatefulObjective
from mbcl.objectives._stateless import StatelessObjective

__all__ = [
    "CLIP",
    "DCL",
    "HCL",
    "OBJECTIVES",
    "Candidates",
    "Distribution",
    "Objective",
    "SimCLR",
    "SogCLR",
    "StatefulObjective",
    "StatelessObjective",
    "build",
]
