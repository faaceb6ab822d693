"""``mbcl export``: weights for other programs, with the same features to the last bit."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors
import torch
import torchvision
from engine.runs import experiment
from safetensors.torch import load_file
from torch import nn

from mbcl import __version__, models
from mbcl.cli import main
from mbcl.data import DATASETS
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine import train
from mbcl.engine.setup import load_data, model_of
from mbcl.errors import ConfigError
from mbcl.export import export, how_to_load, load
from mbcl.io.store import LocalStore

RESNET = {
    "data": {"name": "digits", "max_samples": 40, "image_size": 32},
    "encoder": {"name": "resnet18"},
    "train": {"epochs": 2, "batch_size": 16},
}


@pytest.fixture
def colour_digits(monkeypatch):
    """The digits with three channels, for ImageNet's stem."""
    source = DATASETS["digits"]

    def coloured(part):
        images = part.images.repeat(1, 3, 1, 1)
        return dataclasses.replace(part, images=images, mean=(0.3, 0.31, 0.32), std=(0.37, 0.38, 0.39))

    def read(request):
        splits = source.read(request)
        return dataclasses.replace(splits, train=coloured(splits.train), test=coloured(splits.test))

    monkeypatch.setitem(DATASETS._parts, "digits", dataclasses.replace(source, read=read))


def train_and_save(folder, **changes):
    content = experiment(**changes)
    train(content, world=World(), store=LocalStore(folder))
    return content


def save_untrained(folder, name, in_channels=3, **settings):
    """Save a checkpoint of an untrained encoder after one batch, which updates its buffers."""
    content = experiment(encoder={"name": name, **settings}, data={"name": "digits", "image_size": 32})
    model = model_of(content, in_channels=in_channels)
    with torch.no_grad():
        model(torch.randn(2, in_channels, 75, 75))
    meta = {"experiment": content.model_dump(mode="json"), "row": {}}
    checkpoints.save(LocalStore(folder), epoch=1, state={"model": model.state_dict()}, meta=meta, keep=1)
    return model.eval()


def reference(content, folder, in_channels):
    """The model of the newest checkpoint, built without the export."""
    model = model_of(content, in_channels=in_channels)
    model.load_state_dict(checkpoints.latest(LocalStore(folder)).state["model"])
    return model.eval()


def build_from_lines(lines):
    """The network of features that the printed lines build."""
    scope = {}
    exec("\n".join(lines), scope)
    return scope["network"].eval()


def test_export_of_a_trained_resnet18_equals_torchvision_bit_for_bit(tmp_path, capsys, colour_digits):
    content = train_and_save(tmp_path / "t", **RESNET)
    assert main(["export", "--checkpoint", str(tmp_path / "t"), "--out", str(tmp_path / "e")]) == 0
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == [
        "encoder.pt",
        "encoder.safetensors",
        "export.json",
        "model.safetensors",
    ]
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "e" / "export.json").read_text())
    assert record["load"] == how_to_load(record, "DIR")
    ways = how_to_load(record, str(tmp_path / "e"))
    assert all(line in printed for lines in ways.values() for line in lines)

    expected = reference(content, tmp_path / "t", 3)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features, projections = expected.features(x), expected(x)
        assert torch.equal(build_from_lines(ways["torchvision"])(x), features)
        assert torch.equal(load(tmp_path / "e").features(x), features)
        own = models.build(content.encoder, content.projector, in_channels=3, seed=99)
        own.load_state_dict(load_file(tmp_path / "e" / "model.safetensors"))
        assert torch.equal(own.eval()(x), projections)
        plain = torchvision.models.resnet18()
        plain.load_state_dict(load_file(tmp_path / "e" / "encoder.safetensors"), strict=False)
        plain.fc = nn.Identity()
        assert torch.equal(plain.eval()(x), features)

    state = torch.load(tmp_path / "e" / "encoder.pt", weights_only=True)
    keys = torchvision.models.resnet18().load_state_dict(state, strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert keys.unexpected_keys == []


def test_export_writes_its_record_and_metadata(tmp_path, colour_digits):
    save_untrained(tmp_path / "t", "resnet18")
    record = export(LocalStore(tmp_path / "t"), out=LocalStore(tmp_path / "e"))
    checkpoint = checkpoints.latest(LocalStore(tmp_path / "t"))
    assert record["checkpoint"] == {
        "name": "epoch_000001",
        "sha256": checkpoint.sha256,
        "epoch": 1,
        "folder": str(tmp_path / "t"),
    }
    assert record["experiment"] == checkpoint.meta["experiment"]
    assert record["out_features"] == 512
    assert record["input"]["image_size"] == 32
    assert record["input"]["mean"] == [0.3, 0.31, 0.32]
    assert record["input"]["std"] == [0.37, 0.38, 0.39]
    assert record["torchvision"]["classifier"] == "fc"
    for name in ("encoder.safetensors", "model.safetensors"):
        with safetensors.safe_open(tmp_path / "e" / name, framework="pt") as stored:
            assert stored.metadata() == {
                "architecture": "resnet18",
                "mbcl": __version__,
                "experiment": record["digest"],
                "checkpoint": "epoch_000001",
            }


def test_export_says_where_torchvision_has_no_such_class(tmp_path, capsys):
    content = train_and_save(
        tmp_path / "t", data={"name": "digits", "max_samples": 40}, train={"epochs": 1, "batch_size": 16}
    )
    assert main(["export", "--checkpoint", f"{tmp_path}/t/checkpoints/epoch_000001", "--out", f"{tmp_path}/e"]) == 0
    assert "resnet_small is mbcl's own architecture" in capsys.readouterr().out
    x = torch.randn(3, *load_data(content.data, seed=0).train.images.shape[1:])
    expected = reference(content, tmp_path / "t", x.shape[1])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "e").features(x), expected.features(x))
        own = models.ResNetSmall(in_channels=x.shape[1], widths=[8, 16])
        own.load_state_dict(load_file(tmp_path / "e" / "encoder.safetensors"))
        assert torch.equal(own.eval()(x), expected.features(x))

    for number, (channels, stem) in enumerate([(1, "imagenet"), (3, "small")]):
        save_untrained(tmp_path / f"t{number}", "resnet18", channels, stem=stem)
        record = export(LocalStore(tmp_path / f"t{number}"), out=LocalStore(tmp_path / f"e{number}"))
        assert record["torchvision"]["loads"] is False
        assert f"another first convolution (stem {stem}, {channels} channel" in record["torchvision"]["note"]
        assert list(record["load"]) == ["mbcl"]


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "squeezenet1_1", "densenet121"])
def test_export_of_other_architectures_loads_into_torchvision(tmp_path, name):
    expected = save_untrained(tmp_path / "t", name)
    record = export(LocalStore(tmp_path / "t"), out=LocalStore(tmp_path / "e"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = expected.features(x)
        assert torch.equal(build_from_lines(how_to_load(record, str(tmp_path / "e"))["torchvision"])(x), features)
        assert torch.equal(load(tmp_path / "e").features(x), features)
    network = torchvision.models.get_model(name, **record["torchvision"]["arguments"])
    keys = network.load_state_dict(torch.load(tmp_path / "e" / "encoder.pt", weights_only=True), strict=False)
    assert {key.rpartition(".")[0] for key in keys.missing_keys} == {record["torchvision"]["classifier"]}
    assert keys.unexpected_keys == []


def test_export_keeps_float64(tmp_path):
    content = experiment(encoder={"name": "squeezenet1_1"}, train={"precision": "float64"})
    model = model_of(content, in_channels=3).eval()
    meta = {"experiment": content.model_dump(mode="json"), "row": {}}
    checkpoints.save(LocalStore(tmp_path / "t"), epoch=1, state={"model": model.state_dict()}, meta=meta, keep=1)
    record = export(LocalStore(tmp_path / "t"), out=LocalStore(tmp_path / "e"))
    assert record["dtype"] == "float64"
    assert all("images must be float64" in lines[-1] for lines in record["load"].values())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        features = model.features(x)
        assert torch.equal(build_from_lines(how_to_load(record, str(tmp_path / "e"))["torchvision"])(x), features)
        assert torch.equal(load(tmp_path / "e").features(x), features)


def test_export_best_takes_the_highest_validation_retrieval(tmp_path):
    store = LocalStore(tmp_path / "t")
    train_and_save(tmp_path / "t", data={"name": "digits", "max_samples": 40}, train={"epochs": 3, "batch_size": 16})
    record = export(store, out=LocalStore(tmp_path / "e"), best=True)
    assert record["checkpoint"]["name"] == checkpoints.best(store).name
    with pytest.raises(ConfigError, match="--best chooses among all checkpoints, found epoch_000003"):
        export(store, out=LocalStore(tmp_path / "f"), checkpoint="epoch_000003", best=True)
    save_untrained(tmp_path / "unmeasured", "resnet18")
    with pytest.raises(ConfigError, match="holds no whole checkpoint whose validation retrieval was measured"):
        export(LocalStore(tmp_path / "unmeasured"), out=LocalStore(tmp_path / "f"), best=True)
    assert not (tmp_path / "f").exists()


def test_export_without_the_data_leaves_the_normalisation_open(tmp_path):
    save_untrained(tmp_path / "t", "squeezenet1_1")
    checkpoint = checkpoints.latest(LocalStore(tmp_path / "t"))
    checkpoint.meta["experiment"]["data"] |= {"name": "fashion_mnist", "dir": str(tmp_path / "none")}
    checkpoints.save(LocalStore(tmp_path / "t"), epoch=2, state=checkpoint.state, meta=checkpoint.meta, keep=1)
    record = export(LocalStore(tmp_path / "t"), out=LocalStore(tmp_path / "e"))
    assert (record["input"]["image_size"], record["input"]["mean"]) == (32, None)
    assert "the data could not be read: " in record["input"]["note"]


def test_export_reports_mistakes_in_one_line(tmp_path, capsys):
    save_untrained(tmp_path / "t", "squeezenet1_1")
    assert main(["export", "--checkpoint", f"{tmp_path}/none", "--out", f"{tmp_path}/e"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no such folder\n"
    assert main(["export", "--checkpoint", f"{tmp_path}/t/checkpoints/epoch_000009", "--out", f"{tmp_path}/e"]) == 2
    assert "epoch_000009: incomplete, " in capsys.readouterr().err
    assert main(["export", "--checkpoint", f"{tmp_path}/t", "--out", f"{tmp_path}/e"]) == 0
    before = (tmp_path / "e" / "export.json").read_bytes()
    capsys.readouterr()
    assert main(["export", "--checkpoint", f"{tmp_path}/t", "--out", f"{tmp_path}/e"]) == 2
    assert "e: holds an export already (export.json); choose another --out\n" in capsys.readouterr().err
    assert (tmp_path / "e" / "export.json").read_bytes() == before
    (tmp_path / "e" / "export.json").unlink()  # written last, so an interrupted export lacks it
    (tmp_path / "e" / "encoder.safetensors").write_bytes(b"half")
    assert main(["export", "--checkpoint", f"{tmp_path}/t", "--out", f"{tmp_path}/e"]) == 0
    assert load_file(tmp_path / "e" / "encoder.safetensors")


def test_load_refuses_an_incomplete_export(tmp_path):
    with pytest.raises(ConfigError, match="holds no whole export"):
        load(tmp_path)
    save_untrained(tmp_path / "t", "squeezenet1_1")
    export(LocalStore(tmp_path / "t"), out=LocalStore(tmp_path / "e"))
    (tmp_path / "e" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="its export is damaged"):
        load(tmp_path / "e")
