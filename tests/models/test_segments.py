"""Encoders cut into segments: the same function and the same modules, without copies."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from mbcl.models import ENCODERS, ResNetSmall, Segmented, segments_of

CASES = [
    # encoder, settings, image size, segments
    ("resnet_small", {"widths": [4, 8], "blocks": 2}, 8, 6),
    ("resnet18", {"stem": "small"}, 16, 10),
    ("resnet50", {}, 32, 18),
    ("resnext50_32x4d", {}, 32, 18),
    ("vgg11_bn", {}, 32, 9),
    ("mobilenet_v2", {}, 32, 20),
    ("mobilenet_v3_small", {}, 32, 14),
    ("efficientnet_b0", {}, 32, 19),
    ("densenet121", {}, 32, 63),
    ("densenet121", {"stem": "small"}, 8, 63),
    ("mnasnet0_5", {}, 32, 21),
    ("regnet_y_400mf", {}, 32, 18),
    ("shufflenet_v2_x0_5", {}, 32, 19),
    ("googlenet", {}, 32, 13),
    ("inception_v3", {}, 75, 17),
    ("maxvit_t", {}, 224, 14),
    ("squeezenet1_1", {}, 32, 1),
    ("swin_t", {}, 32, 1),
]


def run(segments: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for segment in segments:
        before = x.clone()
        out = segment(x)
        assert torch.equal(x, before), f"{segment} changed its input"
        x = out
    return x


@pytest.mark.parametrize(("name", "settings", "size", "count"), CASES)
def test_segments_of_compose_to_the_encoder(name, settings, size, count):
    encoder = ENCODERS[name](in_channels=1, **settings)
    twin = copy.deepcopy(encoder)
    names = list(encoder.state_dict())
    segments = segments_of(encoder)
    assert len(segments) == count
    parameters = [parameter for segment in segments for parameter in segment.parameters()]
    assert sorted(map(id, parameters)) == sorted(map(id, encoder.parameters()))
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        assert torch.equal(run(segments, x), twin(x))
        # buffers are equal too: the same modules, each run once
        assert all(torch.equal(a, b) for a, b in zip(encoder.buffers(), twin.buffers(), strict=True))
        encoder.eval()
        assert torch.equal(run(segments_of(encoder), x), twin.eval()(x))
    assert list(encoder.state_dict()) == names


def test_segments_of_have_the_encoders_gradients_to_the_last_bit():
    encoder = ENCODERS["resnet18"](in_channels=1, stem="small")
    twin = copy.deepcopy(encoder)
    x = torch.randn(2, 1, 8, 8)
    functools.reduce(lambda y, segment: segment(y), segments_of(encoder), x).square().sum().backward()
    twin(x).square().sum().backward()
    pairs = zip(encoder.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(parameter.grad, expected.grad) for parameter, expected in pairs)


def test_segments_of_a_plain_encoder_is_one_segment():
    class Plain(nn.Module):
        out_features = 1
        nonlinearity = "relu"

    plain = Plain()
    assert segments_of(plain) == [plain]
    assert not isinstance(plain, Segmented)
    assert isinstance(ResNetSmall(), Segmented)
