"""Networks as chains of short segments, for GradCache: recomputing a large batch by chunks and segments.

Batch norm couples the whole batch, so a network can be computed in chunks only between two batch norms. Shorter
segments contain fewer batch norms, whose statistics need one pass each. A network without batch norm is one segment:
its chunks are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Segmented(Protocol):
    """The optional interface of an encoder that can be cut into segments."""

    def segments(self) -> list[nn.Module]:
        """Return modules whose composition, in order, is bitwise equal to the encoder's forward.

        They contain the encoder's own submodules, every parameter exactly once. They are not registered in the
        encoder, so the names in its state dict do not change. No segment modifies its input in place, because segments
        are recomputed.
        """


def segments_of(encoder: nn.Module) -> list[nn.Module]:
    """Return the segments of any encoder; one that is not :class:`Segmented` is a single segment."""
    return encoder.segments() if isinstance(encoder, Segmented) else [encoder]


class GlobalMean(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C)."""
        return x.mean(dim=(2, 3))


class _DenseConnection(nn.Module):
    """A layer of a dense block with its concatenation: the output is the input followed by the new features."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + growth, H, W)."""
        return torch.cat((x, self.layer(x)), 1)


_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "F.flatten": lambda: nn.Flatten(1),
    "F.mean": GlobalMean,
    "F.pool": lambda: nn.AdaptiveAvgPool2d(1),
    "F.relu": nn.ReLU,
}
"""The operations that torchvision's forwards apply without a module."""

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
"""The forwards of torchvision's networks with batch norm by class: the convolutional trunk | the last segment."""


def cut(network: nn.Module) -> list[nn.Module]:
    """Cut a torchvision network into segments as :class:`Segmented` defines them.

    The first segment is the stem, the last pools and flattens; in between, each block is a segment, together with the
    pooling that follows it.
    """
    chain = _CHAINS.get(type(network).__name__)
    if chain is None or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return [network]
    trunk, tail = (
        [_FUNCTIONS[name]() if name in _FUNCTIONS else network.get_submodule(name) for name in part.split()]
        for part in chain.split("|")
    )
    groups: list[list[nn.Module]] = []
    for step in (step for module in trunk for step in _flatten(module)):
        # Keep a norm or an activation with the convolution before it, because activations modify their input in place.
        if not groups or any(isinstance(module, nn.Conv2d) for module in step.modules()):
            groups.append([])
        groups[-1].append(step)
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in [*groups, tail]]


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a container applies in sequence; a residual or similar block is not split."""
    class_name = type(module).__name__
    if class_name == "_DenseBlock":
        yield from (_DenseConnection(layer) for layer in module.children())
    elif class_name in ("Sequential", "ModuleList", "AnyStage", "MaxVitBlock"):
        for child in module.children():
            yield from _flatten(child)
    else:
        yield module
