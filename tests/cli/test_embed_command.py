"""The command ``mbcl embed``: embeddings of images, which ``mbcl plan`` reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data.official import write_image
from engine import runs

from mbcl.cli import main
from mbcl.config.data import Data
from mbcl.data import clean_views
from mbcl.distributed.collectives import World
from mbcl.engine.setup import load_data
from mbcl.evaluation import find_weights
from mbcl.io.store import LocalStore
from mbcl.planning.embeddings_file import read_table

TINY = ["--set", "train={epochs: 1, batch_size: 8}", "--set", "track=[]", "--set", "evaluation.draws=1", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    runs.run(World(), folder, runs.experiment(train={"epochs": 1, "batch_size": 16}))
    return folder


def test_embed_writes_what_the_model_gives(trained, tmp_path, capsys):
    out = tmp_path / "z.npz"
    assert main(["embed", "--checkpoint", str(trained), "--clean", "--split", "test", "--out", str(out)]) == 0
    assert "359 projections of" in capsys.readouterr().out
    weights = find_weights(LocalStore(trained))
    images = load_data(weights.experiment.data, seed=weights.experiment.seed).test
    model = weights.model(in_channels=1)
    with torch.no_grad():
        expected = model(clean_views(images.pixels(torch.arange(8)), images=images).to(next(model.parameters()).dtype))
    table = read_table([out])
    assert torch.equal(table.embeddings.z1, table.embeddings.z2)
    torch.testing.assert_close(table.embeddings.z1[:8], expected)
    assert table.labels is not None
    assert torch.equal(table.labels, images.labels)


def test_embed_writes_two_views_that_a_plan_is_made_from(trained, tmp_path):
    files = [tmp_path / f"{number}.npz" for number in range(2)]
    for file in files:
        assert main(["embed", "--checkpoint", str(trained), "--out", str(file)]) == 0
    first, again = (np.load(file) for file in files)
    assert not np.array_equal(first["z1"], first["z2"])
    assert all(np.array_equal(first[name], again[name]) for name in first), "the same views every time"
    options = ["--sampler", "{name: refined, pool: null}", "--batch-size", "16", "--out", str(tmp_path / "plan.npz")]
    assert main(["plan", "--embeddings", str(files[0]), *options]) == 0


def test_embed_takes_a_folder_of_images_without_labels(tmp_path, capsys):
    """Train on it, export, and embed all of its images."""
    for number in range(24):
        write_image(tmp_path / "images" / f"{number:02d}.png", number, size=12)
    data = ["--set", f"data={{name: image_folder, dir: {tmp_path / 'images'}}}"]
    with pytest.warns(UserWarning, match="no folder test"):
        assert main(["train", *TINY, *data, "--out", str(tmp_path / "run")]) == 0
    with pytest.warns(UserWarning, match="no folder test"):
        assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 0
    out = tmp_path / "z.npz"
    command = ["embed", "--checkpoint", str(tmp_path / "exported"), "--split", "all", "--features", "--out", str(out)]
    with pytest.warns(UserWarning, match="no folder test"):
        assert main(command) == 0
    assert "24 features of 64 dimensions of image_folder (all), without labels" in capsys.readouterr().out
    columns = np.load(out)
    assert sorted(columns) == ["files", "z1", "z2"]
    assert sorted(columns["files"]) == [f"{number:02d}" for number in range(24)]
    assert read_table([out]).labels is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--out", "z.npy"], "--out: expected the name of an .npz file, found z.npy"),
        (["--out", "/nowhere/z.npz"], "--out: /nowhere is no folder"),
        (["--out", "there.npz"], "there.npz exists already; --overwrite replaces it"),
        (["--out", "z.npz", "--set", "image_sizes=3"], "data: image_sizes: unknown key"),
        (["--out", "z.npz", "--data", "image_folder", "--data-dir", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_embed_refuses_bad_input_in_one_line(trained, tmp_path, monkeypatch, capsys, options, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").touch()
    assert main(["embed", "--checkpoint", str(trained), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


def test_views_of_the_data_block_change_the_augmentation():
    plain = load_data(Data(), seed=0)
    strong = load_data(Data(views={"crop_scale": [0.2, 0.4], "rotation": 90}), seed=0)
    assert strong.train.recipe.crop_scale == (0.2, 0.4)
    assert strong.test.recipe.rotation == 90
    assert strong.train.recipe.blur_sigma == plain.train.recipe.blur_sigma
