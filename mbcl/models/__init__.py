"""Encoders and projectors."""

from mbcl.models.contrastive import ContrastiveModel, ProjectorShape, build
from mbcl.models.projector import Projector
from mbcl.models.registry import ENCODERS, Encoder, EncoderFactory
from mbcl.models.resnet_small import ResNetSmall
from mbcl.models.vision import VisionEncoder

__all__ = [
    "ENCODERS",
    "ContrastiveModel",
    "Encoder",
    "EncoderFactory",
    "Projector",
    "ProjectorShape",
    "ResNetSmall",
    "VisionEncoder",
    "build",
]
