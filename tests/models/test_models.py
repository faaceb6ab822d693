"""Encoders, projector and the seeded model."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from mbcl import models
from mbcl.errors import ConfigError


@dataclasses.dataclass
class Shape:
    layers: int = 2
    hidden: int = 32
    dim: int = 16
    activation: str | None = None


def build(name: str = "resnet_small", in_channels: int = 1, seed: int = 0, shape: Shape | None = None, **settings):
    return models.build({"name": name, **settings}, shape or Shape(), in_channels=in_channels, seed=seed)


def test_model_has_the_expected_shapes_and_dtypes():
    model = build(widths=[4, 8], blocks=2)
    x = torch.randn(5, 1, 8, 8)
    assert model(x).shape == (5, 16)
    assert model.features(x).shape == (5, 8)
    assert model.encoder.out_features == 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == model.features(x).dtype == torch.float32


def test_model_keeps_float64():
    model = build(widths=[4, 8]).double().eval()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    assert model(x).dtype == model.features(x).dtype == torch.float64
    assert torch.equal(model.features(x), model.encoder(x))
    assert torch.equal(model(x), model.projector(model.encoder(x)))


@pytest.mark.parametrize("size, stride", [(8, 1), (28, 2), (7, 1), (1, 1)])
def test_resnet_small_takes_any_image_size(size, stride):
    assert build(stem_stride=stride)(torch.randn(2, 1, size, size)).shape == (2, 16)


def test_resnet_small_blocks_start_as_the_identity():
    model = build(widths=[4, 8])
    blocks = [m for m in model.modules() if type(m).__name__ == "BasicBlock"]
    assert len(blocks) == 2
    assert all(block.bn2.weight.abs().sum() == 0 for block in blocks)
    assert all((m.weight == 1).all() for block in blocks for m in [block.bn1])
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(blocks[0](x.clone()), nn.functional.silu(x))


def test_projector_is_the_published_one():
    model = models.build({"name": "resnet18"}, in_channels=1, seed=0)
    kinds = [type(part) for part in model.projector.net]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    first, norm, _, second, last = model.projector.net
    assert (first.in_features, first.out_features, second.out_features) == (512, 2048, 128)
    assert first.bias is None
    assert second.bias is None
    assert norm.affine
    assert not last.affine


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projection_head_has_the_given_depth(layers):
    head = models.ProjectionHead(in_features=6, layers=layers, hidden=8, dim=4)
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers
    assert head(torch.randn(3, 6)).shape == (3, 4)


def test_build_draws_weights_from_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(seed=3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_model_keeps_its_names_in_checkpoints():
    """Changing a name makes old checkpoints unreadable."""
    names = list(build(widths=[4, 8]).state_dict())
    assert names[0] == "encoder.conv1.weight"
    assert "encoder.stages.1.0.shortcut.1.running_var" in names
    assert names[-1] == "projector.net.4.num_batches_tracked"
    assert len(names) == 46


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"widths": []}, r"widths must be one or more positive numbers, found \[\]"),
        ({"widths": [4, 0]}, r"found \[4, 0\]"),
        ({"blocks": 0}, "blocks must be at least 1, found 0"),
        ({"stem_stride": -1}, "stem_stride must be at least 1, found -1"),
        ({"shape": Shape(hidden=0)}, "hidden must be at least 1, found 0"),
        ({"shape": Shape(layers=-1)}, "layers must be at least 0, found -1"),
        ({"in_channels": 0}, "in_channels must be at least 1, found 0"),
    ],
)
def test_build_refuses_values_out_of_range(settings, text):
    with pytest.raises(ConfigError, match=text):
        build(**settings)


def test_encoders_have_signatures_and_canonical_names():
    assert list(inspect.signature(models.ENCODERS["resnet18"]).parameters) == ["in_channels", "stem", "zero_init"]
    assert models.ENCODERS["resnet18"] is models.ENCODERS["resnet18"]
    assert models.ENCODERS.canonical("resnet50") == "resnet50"
    assert list(models.ENCODERS) == ["pair_mlp", "resnet_small"]


@pytest.mark.parametrize(
    ("encoder", "own", "expected"),
    [("resnet_small", None, nn.SiLU), ("resnet18", None, nn.ReLU), ("resnet_small", "relu", nn.ReLU)],
)
def test_projector_takes_the_encoders_activation_by_default(encoder, own, expected):
    model = build(encoder, shape=Shape(activation=own))
    assert expected in [type(part) for part in model.projector.net]


def test_build_refuses_an_unknown_activation():
    with pytest.raises(ConfigError, match=r"unknown activation 'silo'; did you mean 'silu'"):
        build(activation="silo")
