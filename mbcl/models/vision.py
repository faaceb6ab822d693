"""torchvision's classification architectures as encoders: random weights, no classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from mbcl.errors import ConfigError, nearest
from mbcl.models.activation import Activation


@cache
def architectures() -> tuple[str, ...]:
    """The names of torchvision's classification architectures (imports torchvision)."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


@cache
def vision_factory(architecture: str) -> Callable[..., nn.Module]:
    """A function with the settings of :class:`VisionEncoder` that makes the encoder ``architecture``."""

    def build(
        *, in_channels: int = 3, stem: Literal["imagenet", "small"] = "imagenet", zero_init: bool = True
    ) -> nn.Module:
        return VisionEncoder(architecture=architecture, in_channels=in_channels, stem=stem, zero_init=zero_init)

    build.__name__ = build.__qualname__ = architecture
    return build


class VisionEncoder(nn.Module):
    """A torchvision architecture whose classifier is replaced by the identity.

    Args:
        architecture: torchvision's name, for example ``resnet18``.
        in_channels: channels of the images; other than 3 gives the first convolution new weights of that shape.
        stem: ``imagenet`` as published; ``small`` (ResNets only) for images of about 32 pixels: a 3 x 3 convolution
            of stride 1 and no pooling first (Chen et al. 2020, arXiv:2002.05709, B.9).
        zero_init: start the last batch norm of each residual block at zero, where the architecture has that switch.

    Raises:
        ConfigError: if the architecture is unknown, has no linear classifier, or no ResNet's stem to make small.
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
        if stem == "small" and not _is_resnet(architecture):
            raise ConfigError(f"{architecture}: only ResNets have a small stem, found stem 'small'")
        network = torchvision.models.get_model(architecture, weights=None, **_switches(architecture, zero_init))
        self.out_features = _drop_classifier(network, architecture)
        self.nonlinearity: Activation = "relu"  # the published head's
        if stem == "small":
            network.conv1 = nn.Conv2d(in_channels, network.conv1.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        elif in_channels != 3:
            _adapt_first_convolution(network, in_channels)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) float images to (B, out_features) features."""
        features: Tensor = self.network(x)
        return features


def _switches(architecture: str, zero_init: bool) -> dict[str, Any]:
    """Keywords of the constructor that only some architectures have."""
    if _is_resnet(architecture):
        return {"zero_init_residual": zero_init}
    if architecture in ("googlenet", "inception_v3"):
        return {"init_weights": True, "aux_logits": False}  # extra classifiers for training: an encoder has none
    return {}


def _is_resnet(architecture: str) -> bool:
    return architecture.startswith(("resnet", "resnext", "wide_resnet"))


def _drop_classifier(network: nn.Module, architecture: str) -> int:
    """Replace the last linear layer by the identity and return how many features went into it."""
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"{architecture}: it has no linear classifier, so it cannot be an encoder")
    name, classifier = linear[-1]
    _replace(network, name, nn.Identity())
    return classifier.in_features


def _adapt_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Give the first convolution another number of input channels, freshly initialised as its architecture does."""
    name, old = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    _replace(network, name, new)


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
