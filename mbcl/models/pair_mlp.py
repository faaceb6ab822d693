"""An encoder of pairs: a perceptron for each side, or one for both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.models.activation import Activation, build_activation
from mbcl.models.registry import ENCODERS


@ENCODERS.register("pair_mlp")
class PairMLP(nn.Module):
    """A perceptron for each side of a pair, without normalisation.

    Its input has an even number of rows: side 1 of all pairs, then side 2 of all pairs, each padded to the wider side.

    Args:
        in_features: the numbers of side 1 and of side 2.
        layers: linear layers of a perceptron; an activation follows each but the last.
        width: outputs of all layers but the last.
        dim: number of features.
        shared: one perceptron for both sides, which must be equally wide.
        activation: silu or relu.

    Raises:
        ConfigError: if a number is not positive, or ``shared`` is set for sides of different widths.
    """

    def __init__(
        self,
        *,
        in_features: tuple[int, int],
        layers: int = 2,
        width: int = 512,
        dim: int = 128,
        shared: bool = False,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        for name, value in (("layers", layers), ("width", width), ("dim", dim), ("in_features", min(in_features))):
            if value < 1:
                raise ConfigError(f"pair_mlp: {name} must be at least 1, found {value}")
        if shared and in_features[0] != in_features[1]:
            raise ConfigError(f"pair_mlp: shared needs sides of one width, found {in_features[0]} and {in_features[1]}")
        self.in_features = in_features
        self.out_features = dim
        self.nonlinearity = activation
        sides = [_perceptron(size, layers, width, dim, activation) for size in in_features[: 1 if shared else 2]]
        self.sides = nn.ModuleList(sides)

    def side(self, number: int) -> nn.Module:
        """Return the perceptron of side 1 or 2, from (B, D) rows of that side to (B, dim) features."""
        return self.sides[min(number, len(self.sides)) - 1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (2B, W) rows, those of side 1 first, to (2B, dim) features."""
        assert len(x) % 2 == 0, f"{len(x)} rows are no pairs"
        if len(self.sides) == 1:
            features: Tensor = self.sides[0](x)
            return features
        halves = zip(self.sides, x.chunk(2), self.in_features, strict=True)
        return torch.cat([side(rows[:, :size]) for side, rows, size in halves])


def _perceptron(size: int, layers: int, width: int, dim: int, activation: Activation) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(size, width), build_activation(activation)]
        size = width
    return nn.Sequential(*parts, nn.Linear(size, dim))
