"""A network as a chain of short segments: what recomputing a large batch chunk by chunk, segment by segment, needs.

Batch norm sees the whole batch, so a network can be computed in chunks only between two batch norms' looks at it. The
shorter the segments, the fewer batch norms have to be followed at once. A network without batch norm is one segment:
its chunks never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Segmented(Protocol):
    """The optional part of an encoder."""

    def segments(self) -> list[nn.Module]:
        """Modules whose composition, in order, is the encoder's forward to the last bit.

        They hold the encoder's own submodules, every parameter exactly once, and are not stored in it: the names in
        its state dict do not change. No segment changes its input in place, so that it can be computed again.
        """


def segments_of(encoder: nn.Module) -> list[nn.Module]:
    """The segments of any encoder; one that does not say where it can be cut is a single segment."""
    return encoder.segments() if isinstance(encoder, Segmented) else [encoder]


class GlobalMean(nn.Module):
    """The mean over all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean(dim=(2, 3))


class _Grow(nn.Module):
    """A layer of a dense block with its concatenation: features in, those and the new ones out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + growth, H, W)."""
        return torch.cat((x, self.layer(x)), 1)


_STEPS: dict[str, Callable[[], nn.Module]] = {
    "F.flatten": lambda: nn.Flatten(1),
    "F.mean": GlobalMean,
    "F.pool": lambda: nn.AdaptiveAvgPool2d(1),
    "F.relu": nn.ReLU,
}
"""What torchvision's forwards do without a module."""

_CHAINS = {
    "DenseNet": "features | F.relu F.pool F.flatten classifier",
    "EfficientNet": "features | avgpool F.flatten classifier",
    "GoogLeNet": "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b "
    "inception4c inception4d inception4e maxpool4 inception5a inception5b | avgpool F.flatten dropout fc",
    "Inception3": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 Mixed_5b "
    "Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c "
    "| avgpool dropout F.flatten fc",
    "MNASNet": "layers | F.mean classifier",
    "MaxVit": "stem blocks | classifier",
    "MobileNetV2": "features | F.pool F.flatten classifier",
    "MobileNetV3": "features | avgpool F.flatten classifier",
    "RegNet": "stem trunk_output | avgpool F.flatten fc",
    "ResNet": "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 | avgpool F.flatten fc",
    "ShuffleNetV2": "conv1 maxpool stage2 stage3 stage4 conv5 | F.mean fc",
    "VGG": "features | avgpool F.flatten classifier",
}
"""The forwards of torchvision's networks with batch norm, by class: the convolutional part, then the last segment."""


def cut(network: nn.Module) -> list[nn.Module]:
    """The segments of a torchvision network, as :class:`Segmented` wants them.

    Each block is one, with the pooling that follows it; the first is the stem, the last pools and flattens.
    """
    chain = _CHAINS.get(type(network).__name__)
    if chain is None or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return [network]
    trunk, tail = (
        [_STEPS[name]() if name in _STEPS else network.get_submodule(name) for name in part.split()]
        for part in chain.split("|")
    )
    groups: list[list[nn.Module]] = []
    for link in (link for module in trunk for link in _links(module)):
        # A norm or an activation belongs to the convolution before it; activations work in place.
        if not groups or any(isinstance(module, nn.Conv2d) for module in link.modules()):
            groups.append([])
        groups[-1].append(link)
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in [*groups, tail]]


def _links(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a container applies one after the other; a block is one of them, whole."""
    kind = type(module).__name__
    if kind == "_DenseBlock":
        yield from (_Grow(layer) for layer in module.children())
    elif kind in ("Sequential", "ModuleList", "AnyStage", "MaxVitBlock"):
        for child in module.children():
            yield from _links(child)
    else:
        yield module
