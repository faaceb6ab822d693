"""Pure tensor functions: similarity, losses, affinity. No state, no randomness, no collectives."""

from mbcl.functional._affinity import affinity
from mbcl.functional._checks import check_choice, check_count, check_number, check_temperature
from mbcl.functional._clip import clip
from mbcl.functional._dcl import dcl
from mbcl.functional._hcl import HardNegatives, hcl
from mbcl.functional._nt_xent import nt_xent
from mbcl.functional._similarity import cosine_similarity, normalize, raise_half
from mbcl.functional._sogclr import check_moving_temperature, sogclr

__all__ = [
    "HardNegatives",
    "affinity",
    "check_choice",
    "check_count",
    "check_moving_temperature",
    "check_number",
    "check_temperature",
    "clip",
    "cosine_similarity",
    "dcl",
    "hcl",
    "normalize",
    "nt_xent",
    "raise_half",
    "sogclr",
]
