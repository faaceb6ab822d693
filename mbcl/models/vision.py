"""torchvision's classification architectures as encoders, with random weights and without classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from mbcl.errors import ConfigError, nearest
from mbcl.models.activation import Activation
from mbcl.models.segments import cut


@cache
def architectures() -> tuple[str, ...]:
    """Return the names of torchvision's classification architectures (imports torchvision)."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


_FACTORY_DOC = """\
The architecture {architecture} of torchvision without classifier, dropout and stochastic depth.

Args:
    in_channels: channels of the images; other than 3 gives the first convolution new weights of that shape.
    stem: imagenet as published; small for images of about 32 pixels: a 3 x 3 convolution of stride 1 and no pooling
        first. Only ResNets and DenseNets have one.
    zero_init: start the last batch norm of each residual block at zero, if the architecture has that option.
"""


@cache
def vision_factory(architecture: str) -> Callable[..., nn.Module]:
    """Return a factory of the encoder ``architecture`` with the settings of :class:`VisionEncoder`."""

    def build(
        *, in_channels: int = 3, stem: Literal["imagenet", "small"] = "imagenet", zero_init: bool = True
    ) -> nn.Module:
        return VisionEncoder(architecture=architecture, in_channels=in_channels, stem=stem, zero_init=zero_init)

    build.__name__ = build.__qualname__ = architecture
    build.__doc__ = _FACTORY_DOC.format(architecture=architecture)
    return build


class VisionEncoder(nn.Module):
    """A torchvision architecture whose classifier is replaced by the identity.

    Dropout and stochastic depth are disabled, because a model must have no random state. One worker and several train
    identically only if no rank draws its own random numbers, and a resumed training is bitwise reproducible only if
    it depends on nothing outside the checkpoint.

    Args:
        architecture: torchvision's name, for example ``resnet18``.
        in_channels: channels of the images; other than 3 gives the first convolution new weights of that shape.
        stem: ``imagenet`` as published; ``small`` for images of about 32 pixels: a 3 x 3 convolution of stride 1 and
            no pooling first. ResNets (Chen et al. 2020, arXiv:2002.05709, B.9) and DenseNets (Huang et al. 2017,
            arXiv:1608.06993, section 3, where nothing else precedes the first block) have one.
        zero_init: start the last batch norm of each residual block at zero, if the architecture has that option.

    Attributes:
        out_features: number of input features of the classifier. VGGs and AlexNet keep their hidden linear layers.
        classifier: the name of the module that the identity replaced.

    Raises:
        ConfigError: if the architecture is unknown or has no published small stem.
    """

    def __init__(
        self,
        *,
        architecture: str,
        in_channels: int = 3,
        stem: Literal["imagenet", "small"] = "imagenet",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        import torchvision

        if in_channels < 1:
            raise ConfigError(f"{architecture}: in_channels must be at least 1, found {in_channels}")
        if stem not in ("imagenet", "small"):
            raise ConfigError(f"{architecture}: stem must be imagenet or small, found {stem!r}")
        if architecture not in architectures():
            raise ConfigError(f"unknown encoder {architecture!r}; {nearest(architecture, architectures())}")
        if stem == "small" and not architecture.startswith((*_RESNETS, "densenet")):
            raise ConfigError(f"{architecture}: only ResNets and DenseNets have a small stem, found stem 'small'")
        network = torchvision.models.get_model(
            architecture, weights=None, **_constructor_arguments(architecture, zero_init)
        )
        self.classifier, self.out_features = _drop_classifier(network)
        self.nonlinearity: Activation = "relu"  # that of the published projection head
        _disable_dropout(network)
        if stem == "small" or in_channels != 3:
            _replace_first_convolution(network, in_channels, small=stem == "small")
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) float images to (B, out_features) features."""
        features: Tensor = self.network(x)
        return features

    def segments(self) -> list[nn.Module]:
        """Return the segments of the network; see :class:`~mbcl.models.segments.Segmented`."""
        return cut(self.network)


_RESNETS = ("resnet", "resnext", "wide_resnet")


def _constructor_arguments(architecture: str, zero_init: bool) -> dict[str, Any]:
    """Return constructor arguments that only some architectures have."""
    if architecture.startswith(_RESNETS):
        return {"zero_init_residual": zero_init}
    if architecture in ("googlenet", "inception_v3"):
        return {"init_weights": True, "aux_logits": False}  # no auxiliary classifiers: an encoder has none
    return {}


def _drop_classifier(network: nn.Module) -> tuple[str, int]:
    """Replace the classifier by the identity; returns its name and its number of input features.

    The classifier is the last linear layer, or the last convolution if there is none (SqueezeNet, which pools after
    it).
    """
    parts = list(network.named_modules())
    linear = [(name, part.in_features) for name, part in parts if isinstance(part, nn.Linear)]
    convolutions = [(name, part.in_channels) for name, part in parts if isinstance(part, nn.Conv2d)]
    name, width = (linear or convolutions)[-1]
    network.set_submodule(name, nn.Identity())
    return name, width


def _disable_dropout(network: nn.Module) -> None:
    """Set every rate of dropout and stochastic depth to 0, in modules and in plain float attributes."""
    from torchvision.ops import StochasticDepth

    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.p = 0.0
        for rate in ("dropout", "attention_dropout", "drop_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def _replace_first_convolution(network: nn.Module, in_channels: int, *, small: bool) -> None:
    """Replace the first convolution by one for other input channels, with new Kaiming weights.

    If ``small``, it is a 3 x 3 convolution of stride 1, and the pooling after it is removed.
    """
    name, old = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    same = ("kernel_size", "stride", "padding")
    shape: dict[str, Any] = {"kernel_size": 3, "padding": 1} if small else {key: getattr(old, key) for key in same}
    new = nn.Conv2d(in_channels, old.out_channels, **shape, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(name, new)
    stem = ("maxpool",) if name == "conv1" else ("features.norm0", "features.relu0", "features.pool0")
    for child in stem if small else ():
        network.set_submodule(child, nn.Identity())
