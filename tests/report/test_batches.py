import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report.studies import FULL, grid
from report.test_page import check_self_contained, write_report

from mbcl.data import ViewRecipe
from mbcl.data.images import ImageSet
from mbcl.data.pairs import PairSet
from mbcl.engine.shown_batches import MAX_SHOWN, shown_batches
from mbcl.io.store import LocalStore
from mbcl.report.batches import read_batches


def images_of(channels: int = 1, side: int = 8, classes: tuple[str, ...] = ()) -> ImageSet:
    """Twelve images, each of one brightness, of three classes."""
    pixels = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, channels, side, side) * 20
    labels = torch.arange(12) % 3
    statistics = (0.5,) * channels
    return ImageSet(pixels, labels, "twelve", ViewRecipe(), statistics, statistics, side, classes=classes)


def picture(sample: dict) -> np.ndarray:
    import base64
    import io

    with Image.open(io.BytesIO(base64.b64decode(sample["picture"]))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_shown_batches_are_the_hardest_a_median_and_a_random_one() -> None:
    batches = torch.tensor([[0, 3, 6, 9], [1, 2, 4, 5], [7, 8, 10, 11]])
    losses = torch.tensor([1.0, 3.0, 2.0])
    found = json.loads(shown_batches(batches, losses, images_of(classes=("a", "b", "c")), seed=0))["batches"]
    assert [each["which"] for each in found] == ["hardest", "median", "random"]
    hardest, median, random = found
    assert [sample["position"] for sample in hardest["samples"]] == [1, 2, 4, 5]
    assert (hardest["loss"], hardest["size"], hardest["classes"]) == (3.0, 4, {"b": 2, "c": 2})
    assert [sample["position"] for sample in median["samples"]] == [7, 8, 10, 11]
    assert [sample["position"] for sample in random["samples"]] in batches.tolist()
    assert [sample["class"] for sample in hardest["samples"]] == ["b", "c", "b", "c"]
    assert [int(picture(sample)[0, 0, 0]) for sample in hardest["samples"]] == [20, 40, 80, 100]


@pytest.mark.parametrize(("channels", "side", "shape"), [(3, 64, (32, 32, 3)), (3, 8, (8, 8, 3)), (2, 40, (32, 32, 3))])
def test_thumbnails_are_small_and_keep_their_place(channels: int, side: int, shape: tuple[int, ...]) -> None:
    images = images_of(channels, side).part(torch.tensor([11, 0, 5]))
    content = shown_batches(torch.tensor([[2, 0]]), torch.tensor([1.0]), images, seed=0)
    pictures = [picture(sample) for sample in json.loads(content)["batches"][0]["samples"]]
    assert [each.shape for each in pictures] == [shape] * 2
    assert [int(each[0, 0, 0]) for each in pictures] == [100, 220]


def test_a_large_batch_shows_some_samples_and_counts_all() -> None:
    batch = torch.arange(12).repeat(5)[None]
    (first, *_) = json.loads(shown_batches(batch, torch.tensor([1.0]), images_of(), seed=0))["batches"]
    assert (first["size"], len(first["samples"])) == (60, MAX_SHOWN)
    assert first["classes"] == {"0": 20, "1": 20, "2": 20}


def test_page_shows_the_batches_of_each_setting(tmp_path: Path) -> None:
    store, record = LocalStore(tmp_path), grid(FULL)
    batches, losses = torch.tensor([[0, 3, 6, 9], [1, 2, 4, 5]]), torch.tensor([1.0, 3.0])
    content = shown_batches(batches, losses, images_of(classes=("<cat>", "dog", "owl")), seed=0)
    store.write_bytes("trials/003-aa/batches.json", content)
    store.write_bytes("trials/006-aa/batches.json", b"{damaged")
    store.write_bytes("trials/007-aa/batches.json", content.replace(b'"picture": "', b'"picture": "x\\" onload=\\"'))
    store.write_bytes("trials/008-aa/batches.json", content)
    found = read_batches(store, record)
    assert [(each.label, each.seed) for each in found] == [("osgd (k=20, q=5)", 0), ("spectral (k=4)", 1)]
    assert not found[1].batches[0].samples[0].picture, "a picture is base64 and nothing else"
    text = write_report(tmp_path, record)
    page = check_self_contained(text)
    assert page.tags.count("img") == 12
    assert "2 of dog and 2 of owl" in page.text
    assert "4 of <cat>" in page.text
    assert "hardest, loss 3.000" in page.text


def test_pairs_show_their_texts_short_and_escaped(tmp_path: Path) -> None:
    texts = ("open: Open a <file>\n   & read it", "word " * 100, "three", "four")
    x = torch.eye(4)
    whole = PairSet(x, x, torch.arange(4) % 2, "pairs", classes=("torch", "numpy"), texts=texts)
    pairs = whole.part(torch.tensor([3, 2, 1, 0])).subset(torch.tensor([3, 2])).to("cpu")
    content = shown_batches(torch.tensor([[0, 1]]), torch.tensor([1.0]), pairs, seed=0)
    shown = [sample["text"] for sample in json.loads(content)["batches"][0]["samples"]]
    assert shown == ["open: Open a <file> & read it", ("word " * 100)[:159] + "…"]
    LocalStore(tmp_path).write_bytes("trials/000-aa/batches.json", content)
    page = check_self_contained(write_report(tmp_path, grid(FULL)))
    assert shown[0] in page.text
    assert "file" not in page.tags, "a text is no markup"
    none = PairSet(x, x, torch.arange(4), "pairs")
    assert none.shown(torch.arange(2)) == [{}, {}]


def test_texts_are_shown_as_texts(tmp_path: Path) -> None:
    sample = {"position": 0, "class": "en", "text": "the cat <sat>"}
    batch = {"which": "hardest", "loss": 1.5, "size": 1, "classes": {"en": 1}, "samples": [sample]}
    LocalStore(tmp_path).write_bytes("trials/000-aa/batches.json", json.dumps({"batches": [batch]}).encode())
    page = check_self_contained(write_report(tmp_path, grid(FULL)))
    assert "the cat <sat>" in page.text
    assert "img" not in page.tags
