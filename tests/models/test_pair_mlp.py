"""The encoder of pairs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mbcl import models
from mbcl.errors import ConfigError


class Shape:
    layers, hidden, dim, activation = 0, 8, 4, None


def build(widths=(4, 6), name: str = "pair_mlp", **settings):
    return models.build({"name": name, **settings}, Shape(), in_channels=widths, seed=0)


def test_each_side_goes_through_its_own_perceptron():
    model = build(width=5, dim=3).double()
    x1, x2 = torch.randn(7, 4).double(), torch.randn(7, 6).double()
    stacked = torch.cat([nn.functional.pad(x1, (0, 2)), x2])
    expected = torch.cat([model.encoder.side(1)(x1), model.encoder.side(2)(x2)])
    assert torch.equal(model(stacked), expected)
    assert model(stacked).shape == (14, 3)
    assert [part.out_features for part in model.encoder.side(2) if isinstance(part, nn.Linear)] == [5, 3]


def test_shared_perceptron_is_one_for_both_sides():
    model = build((4, 4), shared=True, layers=3)
    x = torch.randn(6, 4)
    assert torch.equal(model(x), model.encoder.side(1)(x))
    assert model.encoder.side(1) is model.encoder.side(2)
    assert len(model.encoder.sides) == 1


def test_padding_changes_nothing():
    model = build()
    x = torch.randn(4, 6)
    padded = x.clone()
    x[:2, 4:], padded[:2, 4:] = 0, 9
    assert torch.equal(model(x), model(padded))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": 0}, "layers must be at least 1, found 0"),
        ({"width": 0}, "width must be at least 1, found 0"),
        ({"dim": -1}, "dim must be at least 1, found -1"),
        ({"shared": True}, "shared needs sides of one width, found 4 and 6"),
        ({"widths": 3}, "pair_mlp encodes pairs, but these data are images"),
        (
            {"name": "resnet_small"},
            "resnet_small encodes images, but these data are pairs; allowed for pairs: pair_mlp",
        ),
        ({"name": "resnet18"}, "resnet18 encodes images, but these data are pairs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)
