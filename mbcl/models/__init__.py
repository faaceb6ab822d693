"""Models: encoders and projectors."""

from mbcl.models.contrastive import ContrastiveModel, ProjectorShape, build
from mbcl.models.pair_mlp import PairMLP
from mbcl.models.pretrained import digest_of_weights, pretrained
from mbcl.models.projector import ProjectionHead
from mbcl.models.registry import ENCODERS, Encoder, EncoderFactory
from mbcl.models.resnet_small import ResNetSmall
from mbcl.models.segments import Segmented, segments_of
from mbcl.models.vision import VisionEncoder

__all__ = [
    "ENCODERS",
    "ContrastiveModel",
    "Encoder",
    "EncoderFactory",
    "PairMLP",
    "ProjectionHead",
    "ProjectorShape",
    "ResNetSmall",
    "Segmented",
    "VisionEncoder",
    "build",
    "digest_of_weights",
    "pretrained",
    "segments_of",
]
