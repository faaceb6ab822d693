"""Optimisers and the learning-rate schedule."""

from mbcl.optim._build import OPTIMIZERS, Factory, Params, build
from mbcl.optim._lars import LARS
from mbcl.optim._schedule import SCALE_RULES, ScaleRule, cosine_lr, scale_lr

__all__ = ["LARS", "OPTIMIZERS", "SCALE_RULES", "Factory", "Params", "ScaleRule", "build", "cosine_lr", "scale_lr"]
