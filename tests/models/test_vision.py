"""torchvision's architectures as encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from mbcl import models
from mbcl.errors import ConfigError
from mbcl.models import segments_of
from mbcl.models.vision import VisionEncoder, architectures

FAMILIES = {
    # name: features, a valid image size
    "alexnet": (4096, 63),
    "convnext_tiny": (768, 32),
    "densenet121": (1024, 32),
    "efficientnet_b0": (1280, 32),
    "efficientnet_v2_s": (1280, 32),
    "googlenet": (1024, 32),
    "inception_v3": (2048, 75),
    "maxvit_t": (512, 224),
    "mnasnet0_5": (1280, 32),
    "mobilenet_v2": (1280, 32),
    "mobilenet_v3_small": (1024, 32),
    "regnet_x_400mf": (400, 32),
    "regnet_y_400mf": (440, 32),
    "resnet18": (512, 32),
    "resnext50_32x4d": (2048, 32),
    "shufflenet_v2_x0_5": (1024, 32),
    "squeezenet1_0": (512, 32),
    "squeezenet1_1": (512, 32),
    "swin_t": (768, 32),
    "swin_v2_t": (768, 32),
    "vgg11_bn": (4096, 32),
    "vit_b_32": (768, 224),
}

HEAVY = {"alexnet", "maxvit_t", "vgg11_bn", "vit_b_32"}


@pytest.fixture(params=FAMILIES)
def family(request):
    width, size = FAMILIES[request.param]
    return request.param, width, size


def test_vision_encoder_of_each_family_embeds_without_randomness(family):
    """Two forward passes in training mode are equal, and no generator advances."""
    name, width, size = family
    for channels in (1,) if name in HEAVY else (3, 1):
        encoder = models.ENCODERS[name](in_channels=channels)
        x = torch.randn(2, channels, size, size)
        state = torch.get_rng_state()
        with torch.no_grad():
            first, second = encoder.train()(x), encoder(x)
            assert encoder.eval()(x).shape == first.shape == (2, width) == (2, encoder.out_features)
        assert torch.equal(first, second)
        assert torch.equal(state, torch.get_rng_state())


def test_vision_encoders_have_no_randomness_and_small_segments():
    """On the meta device, for speed. A network with batch norm is cut; no segment has more of them than Inception's."""
    for name in architectures():
        if name.startswith("regnet"):  # cannot be built on the meta device, and has no dropout
            continue
        with torch.device("meta"):
            encoder = VisionEncoder(architecture=name)
        assert encoder.out_features >= 512
        for module in encoder.modules():
            random_layer = isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth)
            assert not random_layer or module.p == 0.0, (name, module)
            rates = [getattr(module, key, 0.0) for key in ("dropout", "attention_dropout", "drop_rate")]
            assert all(rate == 0.0 for rate in rates if not isinstance(rate, nn.Module)), (name, module)
        norms = [sum(isinstance(m, nn.BatchNorm2d) for m in segment.modules()) for segment in segments_of(encoder)]
        assert (len(norms) > 1) == any(norms), name
        assert max(norms) <= 10, (name, norms)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resnet18_has_both_stems(stem, channels):
    encoder = models.ENCODERS["resnet18"](in_channels=channels, stem=stem)
    network = encoder.network
    assert encoder.out_features == 512
    assert network.conv1.in_channels == channels
    assert network.conv1.kernel_size == ((7, 7) if stem == "imagenet" else (3, 3))
    assert isinstance(network.maxpool, nn.Identity) == (stem == "small")
    assert encoder(torch.randn(2, channels, 32, 32)).shape == (2, 512)
    lasts = [block.bn2 for stage in (network.layer1, network.layer4) for block in stage]
    assert all(last.weight.abs().sum() == 0 for last in lasts)


def test_resnet18_zero_init_is_optional_and_weights_follow_the_seed():
    first, again = (models.build({"name": "resnet18"}, in_channels=3, seed=0).encoder.network for _ in range(2))
    twin = models.build({"name": "resnet18", "zero_init": False}, in_channels=3, seed=0).encoder.network
    assert twin.layer1[0].bn2.weight.min() == 1
    assert torch.equal(again.conv1.weight, first.conv1.weight)


def test_densenet_small_stem_is_one_convolution():
    """Huang et al. 2017, section 3: a 3 x 3 convolution with twice the growth rate of outputs, then the blocks."""
    encoder = models.ENCODERS["densenet121"](in_channels=1, stem="small").eval()
    stem = encoder.network.features
    assert (stem.conv0.in_channels, stem.conv0.out_channels, stem.conv0.stride) == (1, 64, (1, 1))
    shapes = []
    stem.denseblock1.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    with torch.no_grad():
        assert encoder(torch.randn(2, 1, 16, 16)).shape == (2, 1024)
    assert shapes == [(2, 64, 16, 16)]


def test_encoders_refuse_bad_settings():
    make = models.ENCODERS.__getitem__
    with pytest.raises(ConfigError, match="only ResNets and DenseNets have a small stem"):
        make("mobilenet_v3_small")(stem="small")
    with pytest.raises(ConfigError, match="stem must be imagenet or small, found 'tiny'"):
        make("resnet18")(stem="tiny")
    with pytest.raises(ConfigError, match="in_channels must be at least 1, found 0"):
        make("resnet18")(in_channels=0)
    with pytest.raises(ConfigError, match="unknown encoder 'resnet81'; did you mean 'resnet18'"):
        make("resnet81")
    with pytest.raises(ConfigError, match="unknown encoder 'resnet81'; did you mean"):
        VisionEncoder(architecture="resnet81")
    with pytest.raises(ConfigError, match="did you mean 'resnet_small'"):
        make("resnet_smal")


# -- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", architectures())
def test_vision_encoder_embeds_at_its_published_size(name, channels):
    """`pytest -m slow tests/models/test_vision.py`; vit_h_14 and regnet_y_128gf take 3 GB."""
    import torchvision

    encoder = VisionEncoder(architecture=name, in_channels=channels).eval()
    published = [weights.transforms().crop_size[0] for weights in torchvision.models.get_model_weights(name)]
    with torch.inference_mode():
        features = encoder(torch.randn(2, channels, min(published), min(published)))
    assert features.shape == (2, encoder.out_features)
    assert features.isfinite().all()
