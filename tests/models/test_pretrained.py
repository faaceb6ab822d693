"""Weights of a file as the initial ones of an encoder."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torchvision

from mbcl.errors import ConfigError
from mbcl.models import build

SMALL = {"name": "resnet_small", "widths": [8, 16]}


def small(**changes):
    return build({**SMALL, **changes}, in_channels=1, seed=1)


def test_weights_replace_those_of_the_encoder_alone(tmp_path):
    source = build(SMALL, in_channels=1, seed=5)
    file = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(source.encoder.state_dict(), file)
    model, random = small(weights=str(file)), small()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, source.encoder.state_dict()[name])
    assert not torch.equal(random.encoder.conv1.weight, model.encoder.conv1.weight)
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(tensor, random.projector.state_dict()[name]), "drawn as without the file"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder."])
def test_weights_of_a_torch_file_may_be_wrapped_and_prefixed(tmp_path, wrapper, prefix):
    source = build(SMALL, in_channels=1, seed=5)
    state = {f"{prefix}{name}": tensor for name, tensor in source.encoder.state_dict().items()}
    if prefix == "encoder.":
        state |= {f"projector.{name}": tensor for name, tensor in source.projector.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    model = small(weights=f"file://{tmp_path}/w.pt")
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight)


def test_weights_of_torchvision_are_loaded_without_their_classifier(tmp_path):
    network = torchvision.models.resnet18(weights=None)
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "resnet18.pth")
    model = build({"name": "resnet18", "weights": str(tmp_path / "resnet18.pth")}, in_channels=3, seed=0).eval()
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), network.eval()(x))


def wrong(kind, state):
    if kind == "missing":
        return {name: tensor for name, tensor in state.items() if name != "conv1.weight"}
    if kind == "unexpected":
        return {**state, "other": torch.zeros(1)}
    if kind == "shape":
        return {**state, "conv1.weight": torch.zeros(8, 3, 3, 3)}
    if kind == "nan":
        return {**state, "bn1.bias": torch.full((8,), torch.nan)}
    return [1, 2]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "1 missing, first conv1.weight"),
        ("unexpected", "1 unexpected, first other"),
        ("shape", "1 of another shape, first conv1.weight is 8 x 3 x 3 x 3, expected 8 x 1 x 3 x 3"),
        ("nan", "bn1.bias holds values that are not finite"),
        ("list", "holds a list that is no state dict: tensors by name"),
    ],
)
def test_weights_of_another_encoder_are_refused(tmp_path, kind, text):
    file = tmp_path / "w.pt"
    torch.save(wrong(kind, build(SMALL, in_channels=1, seed=5).encoder.state_dict()), file)
    with pytest.raises(ConfigError, match=text) as caught:
        small(weights=str(file))
    assert str(caught.value).startswith(f"weights: {file}: ")
    assert "\n" not in str(caught.value)


class Code:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


def test_weights_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="weights: /nowhere.pt: cannot be read: No such file or directory"):
        small(weights="/nowhere.pt")
    for suffix, form in ((".pt", "state dict of torch"), (".safetensors", "safetensors file")):
        (tmp_path / f"w{suffix}").write_bytes(b"no weights")
        with pytest.raises(ConfigError, match=f"not a {form}: "):
            small(weights=str(tmp_path / f"w{suffix}"))
    torch.save({"a": Code()}, tmp_path / "code.pt")
    with pytest.raises(ConfigError, match="not a state dict of torch"):
        small(weights=str(tmp_path / "code.pt"))
