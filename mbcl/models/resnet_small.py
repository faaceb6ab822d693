"""A ResNet for small images and small machines."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.models.activation import Activation, build_activation
from mbcl.models.registry import ENCODERS
from mbcl.models.segments import GlobalMean


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, arXiv:1512.03385, figure 5 left).

    The last batch norm starts at zero, so that a new block is the identity (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation = build_activation(activation)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.activation(out + self.shortcut(x))
        return result


@ENCODERS.register("resnet_small")
class ResNetSmall(nn.Module):
    """A few stages of basic blocks; each stage but the first halves the resolution.

    Args:
        in_channels: channels of the images.
        widths: channels of each stage; the last is the number of features.
        blocks: basic blocks a stage.
        stem_stride: stride of the first convolution; 2 quarters the work, for images of 28 pixels and more.
        activation: silu or relu; :mod:`mbcl.models.activation` says why silu.

    Raises:
        ConfigError: if a number is not positive or there is no stage.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        stem_stride: int = 1,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ConfigError(f"resnet_small: widths must be one or more positive numbers, found {widths}")
        for name, value in (("in_channels", in_channels), ("blocks", blocks), ("stem_stride", stem_stride)):
            if value < 1:
                raise ConfigError(f"resnet_small: {name} must be at least 1, found {value}")
        self.out_features = widths[-1]
        self.nonlinearity = activation
        self.conv1 = _conv3x3(in_channels, widths[0], stem_stride)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.activation = build_activation(activation)
        stages: list[nn.Module] = []
        for stage, width in enumerate(widths):
            in_width = widths[max(stage - 1, 0)]
            parts = [BasicBlock(in_width, width, 1 if stage == 0 else 2, activation)]
            parts += [BasicBlock(width, width, 1, activation) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) float images to (B, out_features) features."""
        x = self.stages(self.activation(self.bn1(self.conv1(x))))
        return x.mean(dim=(2, 3))

    def segments(self) -> list[nn.Module]:
        """Return stem, blocks and pooling as segments; see :class:`~mbcl.models.segments.Segmented`."""
        blocks = [block for stage in self.stages for block in stage.children()]
        return [nn.Sequential(self.conv1, self.bn1, self.activation), *blocks, GlobalMean()]
