"""The projection head, from features to the space in which the objective compares views."""

from __future__ import annotations

from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.models.activation import Activation, build_activation


class ProjectionHead(nn.Module):
    """An MLP without biases: every hidden layer has batch norm and an activation, the last layer has batch norm.

    The published form has two layers (features, 2048, 128), a ReLU between them, and a last batch norm without scale
    and shift. The output is not normalised to unit length: the objectives do that.

    Args:
        in_features: dimension of the encoder's features.
        layers: number of linear layers; 1 is a linear head, 0 none: the features are the projections.
        hidden: width of all layers but the last.
        dim: dimension D of the projections.
        activation: relu, as published, or silu; see :mod:`mbcl.models.activation`.

    Raises:
        ConfigError: if a number is too small.
    """

    def __init__(
        self, *, in_features: int, layers: int = 2, hidden: int = 2048, dim: int = 128, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        smallest = {"in_features": (in_features, 1), "layers": (layers, 0), "hidden": (hidden, 1), "dim": (dim, 1)}
        for name, (value, least) in smallest.items():
            if value < least:
                raise ConfigError(f"projector: {name} must be at least {least}, found {value}")
        parts: list[nn.Module] = []
        width = in_features
        for _ in range(layers - 1):
            parts += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), build_activation(activation)]
            width = hidden
        if layers:
            parts += [nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim, affine=False)]
        self.net = nn.Sequential(*parts)
        self.out_features = dim if layers else in_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_features) features to (B, dim) projections."""
        projections: Tensor = self.net(x)
        return projections
