"""The registry of data sets, the embedded digits, image sets and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl import data
from mbcl.data.images import stratified_rows, stratified_split
from mbcl.errors import ConfigError, DataError

PINNED_LABELS = [0, 5, 0, 1, 4, 0, 9, 4, 3, 0, 0, 2]
PINNED_SUM = 1776923


@pytest.fixture(scope="module")
def digits() -> data.Splits:
    return data.load("digits")


def image_set(num: int, **changes) -> data.ImageSet:
    values = {
        "images": torch.zeros(num, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(num, dtype=torch.int64),
        "name": "made",
        "recipe": data.IDENTITY,
        "mean": (0.5,),
        "std": (0.5,),
        "image_size": 4,
    }
    return data.ImageSet(**(values | changes))


# -- digits --------------------------------------------------------------------------------------------------------


def test_digits_equal_scikit_learns(digits):
    from sklearn.datasets import load_digits

    stored = load_digits()
    both = torch.cat([digits.train.images, digits.test.images])
    assert both.shape == (1797, 1, 8, 8)
    assert both.dtype == torch.uint8
    assert both.max() == 255
    pixels = sorted(map(bytes, np.rint(both.numpy()[:, 0] / 255 * 16).astype(np.uint8)))
    assert pixels == sorted(map(bytes, stored.images.astype(np.uint8)))


def test_digits_test_part_is_a_fixed_stratified_fifth(digits):
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    shares = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    again = data.load("digits")
    assert torch.equal(again.test.images, digits.test.images)
    # Pinned: results of different versions compare only on the same test images.
    assert digits.test.labels[:12].tolist() == PINNED_LABELS
    assert int(digits.test.images.long().sum()) == PINNED_SUM


def test_digits_have_the_statistics_of_their_pixels(digits):
    pixels = digits.train.images.float() / 255
    assert digits.train.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert digits.train.std[0] == pytest.approx(float(pixels.std()), abs=1e-4)


def test_digits_recipe_does_not_mirror(digits):
    assert digits.train.recipe.flip_probability == 0


def test_digits_warn_about_unused_settings(tmp_path):
    with pytest.warns(UserWarning, match="digits is embedded"):
        data.load("digits", dir=str(tmp_path))


# -- the registry --------------------------------------------------------------------------------------------------


def test_describe_is_one_line_for_every_data_set():
    for name in data.DATASETS:
        assert "\n" not in data.describe(name)
    assert "no files needed" in data.describe("digits")
    assert "train-images-idx3-ubyte" in data.describe("fashion_mnist")


def test_load_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'fashion_mnist'"):
        data.load("fashion-mnist")


def test_load_takes_max_samples_of_all_classes(digits):
    few, fewer = (data.load("digits", max_samples=num) for num in (100, 50))
    shares = digits.train.labels.bincount() / len(digits.train)
    for part, num in ((few, 100), (fewer, 50)):
        assert ((part.train.labels.bincount() - num * shares).abs() < 1).all()
        assert part.train.images.untyped_storage().nbytes() == num * 64
        assert len(part.test) == 359
    assert torch.equal(few.train.images, data.load("digits", max_samples=100).train.images)
    assert len(data.load("digits", max_samples=10**6).train) == 1438


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_stratified_rows_are_of_all_classes_and_part_of_more(labels, num):
    labels = torch.tensor(labels)
    rows = stratified_rows(labels, num)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == min(num, len(labels))
    counts, kept = labels.bincount(minlength=6), labels[rows].bincount(minlength=6)
    assert ((kept - counts * len(rows) / len(labels)).abs() < 1).all()
    more = stratified_rows(labels, num + 1)
    grown = labels[more].bincount(minlength=6) >= kept
    assert all(row in more for row in rows if grown[labels[row]])


def test_load_sets_the_image_size_of_views(digits):
    assert data.load("digits", image_size=16).train.image_size == 16
    assert digits.train.image_size == 8


@pytest.mark.parametrize(("key", "text"), [("max_samples", "at least 1"), ("image_size", r"in 4\.\.1024")])
def test_load_refuses_numbers_out_of_range(key, text):
    with pytest.raises(ConfigError, match=f"{key} must be {text}, found 0"):
        data.load("digits", **{key: 0})


# -- sets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, "holds no images"),
        ({"images": torch.zeros(3, 1, 4, 4)}, r"uint8, found \(3, 1, 4, 4\) torch.float32"),
        ({"images": torch.zeros(3, 4, 4, dtype=torch.uint8)}, r"found \(3, 4, 4\)"),
        ({"images": torch.zeros(3, 1, 0, 4, dtype=torch.uint8)}, r"found \(3, 1, 0, 4\)"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"3 images need as many int64 labels, found \(2,\)"),
        ({"labels": torch.zeros(3)}, "torch.float32"),
        ({"mean": (0.5, 0.5)}, "1 channel, but 2 means, 1 std"),
    ],
)
def test_image_set_refuses_inconsistent_fields(changes, text):
    with pytest.raises(DataError, match=text):
        image_set(3, **changes)


def test_image_set_stays_on_the_cpu_without_device_memory(monkeypatch):
    images = image_set(5, images=torch.arange(80, dtype=torch.uint8).reshape(5, 1, 4, 4))
    rows = torch.tensor([3, 1])
    assert images.to("meta").images.device.type == "meta"
    monkeypatch.setattr("mbcl.data.images._free_memory", lambda device: 159)
    with pytest.warns(UserWarning, match="do not fit into half .* they stay on cpu, and every batch is moved"):
        on_cpu = images.to("meta")
    assert on_cpu.images.device.type == "cpu"
    assert on_cpu.pixels(rows).device.type == "meta"
    assert torch.equal(images.to("cpu").pixels(rows), images.images[rows])
    monkeypatch.setattr("mbcl.data.images._free_memory", lambda device: 160)
    assert images.to("meta").images.device.type == "meta"


def test_image_set_keeps_file_names_with_images():
    images = image_set(3, files=("a", "b", "c"))
    assert images.subset(torch.tensor([2, 0])).files == ("c", "a")
    assert images.first(2).files == ("a", "b")
    assert images.first(3) is images
    with pytest.raises(DataError, match="3 images, but 1 names of files"):
        image_set(3, files=("a",))


def test_image_set_part_shares_memory_and_subset_copies(monkeypatch):
    images = image_set(6, files=tuple("abcdef"))
    part = images.part(torch.tensor([4, 1, 5])).part(torch.tensor([2, 0]))
    assert part.images is images.images
    assert (part.files, part.labels.tolist()) == (("f", "e"), images.labels[[5, 4]].tolist())
    expected = images.images[[5, 4]]
    for same in (part, part.subset(torch.arange(2)), part.first(9), part.to("cpu")):
        assert torch.equal(same.pixels(torch.tensor([0, 1])), expected)
        assert len(same) == 2
    assert torch.equal(part.first(1).images, expected[:1])
    monkeypatch.setattr("mbcl.data.images._free_memory", lambda device: 10**6)
    assert part.to("meta").images.shape == expected.shape
    assert part.to("meta").rows is None


# -- splits --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    labels=st.lists(st.integers(0, 6), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_stratified_split_is_disjoint_complete_and_stratified(labels, fraction, seed):
    values = torch.tensor(labels)
    first, second = stratified_split(values, fraction, seed, "test")
    num, num_second = len(labels), min(max(round(len(labels) * fraction), 1), len(labels) - 1)
    assert len(second) == num_second
    assert sorted(first.tolist() + second.tolist()) == list(range(num))
    assert first.tolist() == sorted(first.tolist())
    quotas = values.bincount() * (num_second / num)
    assert ((values[second].bincount(minlength=len(quotas)) - quotas).abs() < 1 + 1e-6).all()
    again = stratified_split(values, fraction, seed, "test")
    assert torch.equal(again[1], second)


def _pairs(part: data.ImageSet):
    return zip(part.pixels(torch.arange(len(part))).numpy(), part.labels.tolist(), strict=True)


def test_split_validation_draws_by_seed_and_keeps_labels(digits):
    train, validation = data.split_validation(digits.train, 0.1, seed=0)
    assert (len(train), len(validation)) == (1294, 144)
    other = data.split_validation(digits.train, 0.1, seed=1)[1]
    assert not torch.equal(other.rows, validation.rows)
    assert train.images is validation.images is digits.train.images, "no copies"
    rows = {bytes(image): int(label) for image, label in _pairs(digits.train)}
    for part in (train, validation):
        assert all(rows[bytes(image)] == int(label) for image, label in _pairs(part))
    assert train.recipe is digits.train.recipe


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_validation_refuses_fractions_out_of_range(fraction):
    with pytest.raises(ConfigError, match=f"found {fraction}"):
        data.split_validation(image_set(4), fraction, seed=0)


def test_split_validation_refuses_one_sample():
    with pytest.raises(ConfigError, match="at least 2 samples, found 1"):
        data.split_validation(image_set(1), seed=0)


def test_load_refuses_an_empty_folder_name():
    with pytest.raises(DataError, match="is empty text; write . for the one that you are in"):
        data.load("cifar10", dir="")


def test_load_refuses_the_home_of_an_unknown_user():
    with pytest.raises(ConfigError, match="dir: found '~nobody_such/x', whose user has no home folder here"):
        data.load("cifar100", dir="~nobody_such/x")
