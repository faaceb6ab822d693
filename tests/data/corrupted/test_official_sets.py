"""Corrupted test sets in their official formats: loaded in the order of the clean images, or refused."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import write_cifar, write_corrupted_archive, write_image, write_tiny_imagenet
from PIL import Image

from mbcl import data
from mbcl.cli import main
from mbcl.data.packs import folders
from mbcl.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings(
    "ignore:cifar:UserWarning", "ignore:tiny_imagenet:UserWarning", "ignore:image_folder:UserWarning"
)


@pytest.fixture
def clean(tmp_path) -> data.ImageSet:
    """CIFAR-10's test part."""
    write_cifar(tmp_path, "cifar10", num_test=12)
    return data.load("cifar10", dir=str(tmp_path)).test


@pytest.fixture
def archive(tmp_path, clean) -> Path:
    root = tmp_path / "CIFAR-10-C"
    write_corrupted_archive(root, clean.images.numpy(), clean.labels.numpy())
    return root


def load(root: Path, clean: data.ImageSet, corruption: str = "snow", severity: int = 3, **options) -> data.ImageSet:
    name = options.pop("name", "cifar10_c")
    return data.load_corrupted(name, dir=str(root), corruption=corruption, severity=severity, clean=clean, **options)


def assert_refused(root: Path, clean: data.ImageSet, text: str, **options) -> None:
    with pytest.raises(DataError, match=text) as caught:
        load(root, clean, **options)
    assert "\n" not in str(caught.value)


def test_data_check_names_missing_standard_corruptions(tmp_path, clean, capsys):
    everything = data.CORRUPTIONS
    write_corrupted_archive(tmp_path / "C", clean.images.numpy(), clean.labels.numpy(), everything)
    line = ["data", "check", "--data", "cifar10_c", "--data-dir", str(tmp_path / "C"), "--clean-dir", str(tmp_path)]

    def warnings_of_check() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main(line) == 0
        return [str(each.message) for each in caught if "corruptions" in str(each.message)]

    assert warnings_of_check() == []
    (tmp_path / "C" / "fog.npy").unlink()
    missing = f"cifar10_c: {tmp_path / 'C'} holds 14 of the 15 standard corruptions; missing: fog"
    assert warnings_of_check() == [missing]
    capsys.readouterr()
    assert main([*line, "--verify", "strict"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {missing} (an error because")


def test_check_complete_names_missing_severities(tiny):
    _, root = tiny
    for corruption in data.CORRUPTIONS:
        for severity in range(1, 6):
            (root / corruption / str(severity)).mkdir(parents=True, exist_ok=True)
    data.check_complete("tiny_imagenet_c", dir=str(root), verify="strict")
    shutil.rmtree(root / "snow" / "2")
    shutil.rmtree(root / "snow" / "4")
    with pytest.raises(DataError, match=r"tiny_imagenet_c: .*: snow lacks severity 2, 4 \(an error"):
        data.check_complete("tiny_imagenet_c", dir=str(root), verify="strict")


# -- CIFAR's archives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10_c", "cifar10"])
@pytest.mark.parametrize("place", ["itself", "its parent"])
def test_load_corrupted_reads_an_archive(archive, clean, place, name):
    root = archive if place == "itself" else archive.parent
    assert data.corrupted_available(name, str(root)) == {"snow": [1, 2, 3, 4, 5], "fog": [1, 2, 3, 4, 5]}
    for number, corruption in enumerate(("fog", "snow")):
        for severity in (1, 5):
            corrupted = load(root, clean, corruption, severity, name=name)
            assert torch.equal(corrupted.images, ((clean.images.int() + 10 * severity + number) % 256).to(torch.uint8))
            assert torch.equal(corrupted.labels, clean.labels)
            assert (corrupted.mean, corrupted.recipe, corrupted.image_size) == (
                clean.mean,
                clean.recipe,
                clean.image_size,
            )
            assert corrupted.name == "cifar10_c"


def test_load_corrupted_takes_labels_of_one_severity(archive, clean):
    np.save(archive / "labels.npy", clean.labels.numpy().astype(np.uint8))
    assert len(load(archive, clean)) == 12


def test_load_corrupted_refuses_a_truncated_archive(archive, clean):
    path = archive / "snow.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(archive, clean, "snow.npy: not a whole NumPy file of .* bytes")
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': ")
    assert_refused(archive, clean, "snow.npy: not a whole NumPy file of 20 bytes")
    path.write_bytes(b"")
    assert_refused(archive, clean, "snow.npy: not a whole NumPy file of 0 bytes")
    with path.open("wb") as stream:
        np.savez(stream, clean.images.numpy())
    assert_refused(archive, clean, "snow.npy: not a whole NumPy file of .* an archive of arrays")


class Evil:
    def __reduce__(self):
        return Path("touched").touch, ()


@pytest.mark.parametrize("name", ["snow.npy", "labels.npy"])
def test_load_corrupted_unpickles_nothing(archive, clean, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.save(archive / name, np.array([Evil()], dtype=object), allow_pickle=True)
    assert_refused(archive, clean, f"{name}: not a whole NumPy file")
    (archive / name).write_bytes(pickle.dumps(Evil()))
    assert_refused(archive, clean, f"{name}: not a whole NumPy file")
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    "shape, dtype, description",
    [
        ((48, 32, 32, 3), np.uint8, "uint8 48 x 32 x 32 x 3"),
        ((60, 3, 32, 32), np.uint8, "uint8 60 x 3 x 32 x 32"),
        ((60, 32, 32, 3), np.float32, "float32 60"),
    ],
)
def test_load_corrupted_refuses_other_shapes(archive, clean, shape, dtype, description):
    np.save(archive / "snow.npy", np.zeros(shape, dtype))
    assert_refused(
        archive,
        clean,
        f"expected uint8 60 x 32 x 32 x 3, five severities of the 12 clean test images, found {description}",
    )


def test_load_corrupted_refuses_labels_of_other_images(archive, clean):
    labels = np.tile(clean.labels.numpy(), 5)
    labels[24 + 7] = (labels[24 + 7] + 1) % 10
    np.save(archive / "labels.npy", labels)
    assert len(load(archive, clean, severity=2)) == 12
    assert_refused(
        archive,
        clean,
        f"1 labels are not those of the clean test images, first {labels[31]} at position 31",
        severity=3,
    )
    np.save(archive / "labels.npy", labels[:-1])
    assert_refused(archive, clean, "expected 60 or 12 whole numbers, found int64 59")
    np.save(archive / "labels.npy", labels.astype(float))
    assert_refused(archive, clean, "found float64 60")
    (archive / "labels.npy").unlink()
    assert_refused(archive, clean, "labels.npy: missing")


def test_load_corrupted_refuses_what_does_not_exist(archive, clean, tmp_path):
    with pytest.raises(ConfigError, match="no corruption 'fogg' in .*; did you mean 'fog'"):
        load(archive, clean, "fogg")
    with pytest.raises(ConfigError, match="no corruption"):
        load(archive, clean, "../snow")
    with pytest.raises(ConfigError, match=r"1..5, found 6"):
        load(archive, clean, severity=6)
    with pytest.raises(ConfigError, match="no corrupted set of 'digits'"):
        load(archive, clean, name="digits")
    assert_refused(
        tmp_path / "nowhere", clean, r"nowhere does not exist; expected the extracted CIFAR-10-C.tar \(CORRUPTION.npy"
    )
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", clean, "empty holds no corruptions; expected")


def test_load_corrupted_warns_about_another_number_of_images(archive, clean):
    with pytest.warns(UserWarning, match="the official set has 10,000 images, the clean one has 12"):
        load(archive, clean)
    assert_refused(archive, clean, "data.verify: strict", verify="strict")


def test_load_refuses_to_train_on_a_corrupted_set(archive):
    with pytest.raises(ConfigError, match="cifar10_c is a corrupted test set .* train on cifar10"):
        data.load("cifar10_c", dir=str(archive))


# -- folders -------------------------------------------------------------------------------------------------------


def png(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def as_folders(root: Path, clean: data.ImageSet, name_of, severity: int = 3, folder_of=None) -> None:
    """CORRUPTION/SEVERITY/CLASS/IMAGE of the inverted images."""
    for position, (image, label) in enumerate(zip(255 - clean.images, clean.labels.tolist(), strict=True)):
        folder = folder_of(label) if folder_of else clean.classes[label]
        png(root / "fog" / str(severity) / folder / name_of(position), image)


NAMES = {
    "that of the clean file": lambda clean: lambda position: f"{clean.files[position]}.png",
    "the position": lambda clean: lambda position: f"{position:05d}.png",
    "a number in the class": lambda clean: (
        lambda position: f"img{int((clean.labels[:position] == clean.labels[position]).sum())}.png"
    ),
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("folders", ["names", "numbers"])
def test_load_corrupted_orders_folders_like_the_clean_images(tmp_path, names, folders):
    write_cifar(tmp_path, "cifar10", num_test=60)
    clean = data.load("cifar10", dir=str(tmp_path)).test
    root = tmp_path / "C"
    # image names are unique, as in the official archive; our files repeat them
    clean = data.ImageSet(**{**vars(clean), "files": tuple(f"x_s_{row:06d}" for row in range(60))})
    as_folders(root, clean, NAMES[names](clean), folder_of=str if folders == "numbers" else None)
    assert data.corrupted_available("cifar10_c", str(root)) == {"fog": [3]}
    if names.startswith("a number"):
        with pytest.warns(UserWarning, match="names do not tell which clean images"):
            corrupted = load(root, clean, "fog")
        assert_refused(root, clean, "data.verify: strict", corruption="fog", verify="strict")
    else:
        corrupted = load(root, clean, "fog")
    assert torch.equal(corrupted.images, 255 - clean.images)
    assert torch.equal(corrupted.labels, clean.labels)


@pytest.fixture
def tiny(tmp_path) -> tuple[data.ImageSet, Path]:
    folder = write_tiny_imagenet(tmp_path, num_val=7)
    clean = data.load("tiny_imagenet", dir=str(folder)).test
    root = tmp_path / "Tiny-ImageNet-C"
    as_folders(root, clean, lambda position: f"{clean.files[position]}.PNG")
    return clean, root


def test_load_corrupted_reads_tiny_imagenet(tiny):
    clean, root = tiny
    assert torch.equal(load(root, clean, "fog", name="tiny_imagenet_c").images, 255 - clean.images)
    assert torch.equal(load(root.parent, clean, "fog", name="tiny_imagenet").images, 255 - clean.images)
    with pytest.raises(DataError, match=r"fog has no severity 5 in .*, found \[3\]"):
        load(root, clean, "fog", 5, name="tiny_imagenet_c")


def test_load_corrupted_names_wrong_files(tiny):
    clean, root = tiny
    folder = root / "fog" / "3"
    options = {"corruption": "fog", "name": "tiny_imagenet_c"}
    path = folder / clean.classes[int(clean.labels[4])] / "val_4.PNG"
    other = folder / clean.classes[int(clean.labels[5])] / path.name
    shutil.copy(path, other)
    assert_refused(
        root, clean, "a second file of this name|val_4.PNG: the clean test image of this name is of class", **options
    )
    path.unlink()
    assert_refused(root, clean, f"{other}: the clean test image of this name is of class {path.parent.name}", **options)
    other.rename(path)
    write_image(path.with_name("val_99.PNG"), 0)
    assert_refused(root, clean, "val_99.PNG: there is no clean test image of this name", **options)
    path.with_name("val_99.PNG").rename(path)
    assert len(load(root, clean, **options)) == 7
    path.write_bytes(path.read_bytes()[:100])
    assert_refused(root, clean, "val_4.PNG: not a readable image", **options)
    path.unlink()
    assert_refused(root, clean, r"lacks 1 of the 7 test images, first that at position 4 \(val_4\)", **options)
    write_image(path, 0, size=32)
    assert_refused(root, clean, "expected 64 x 64 pixels, found 32 x 32", **options)
    path.parent.rename(folder / "n00000001")
    assert_refused(root, clean, "n00000001: not one of the 3 classes of the clean test images", **options)


def test_load_corrupted_without_names_compares_class_sizes(tiny):
    clean, root = tiny
    unnamed = data.ImageSet(**{**vars(clean), "files": ()})
    victim = next((root / "fog" / "3" / clean.classes[0]).iterdir())
    victim.unlink()
    assert_refused(
        root,
        unnamed,
        f"class {clean.classes[0]} has 1 image, the clean test part 2",
        corruption="fog",
        name="tiny_imagenet",
    )


# -- packs ---------------------------------------------------------------------------------------------------------


def pack(root: Path, *more: str) -> int:
    return main(["data", "pack", "--data", "tiny_imagenet_c", "--data-dir", str(root), *more])


def test_data_pack_of_a_corrupted_set_has_the_same_images(tiny, tmp_path, monkeypatch, capsys):
    clean, root = tiny
    as_folders(root, clean, lambda position: f"{clean.files[position]}.PNG", severity=5)
    expected = {severity: load(root, clean, "fog", severity, name="tiny_imagenet_c").images for severity in (3, 5)}
    assert pack(root, "--out", str(tmp_path / "out")) == 0
    assert pack(root.parent) == 0
    out = capsys.readouterr().out
    assert f"{root}/mbcl-pack/fog-3.json: 7 test images of 64 x 64; " in out
    sizes = [path.stat().st_size for path in (root / "mbcl-pack").iterdir()]
    assert len(sizes) == 4
    assert sum(sizes) <= 1.1 * 2 * 7 * 3 * 64 * 64
    assert pack(root) == 0
    assert capsys.readouterr().out.count("is there already; --force packs them again") == 2
    monkeypatch.setattr(folders, "read_image", None)

    def same(place: Path) -> None:
        assert data.corrupted_available("tiny_imagenet_c", str(place)) == {"fog": [3, 5]}
        for severity, images in expected.items():
            assert torch.equal(load(place, clean, "fog", severity, name="tiny_imagenet_c").images, images)

    for place in (root, root.parent, tmp_path / "out"):
        same(place)
    shutil.rmtree(root / "fog")
    same(root)
    other = data.ImageSet(**{**vars(clean), "labels": clean.labels.roll(1)})
    assert_refused(
        root, other, "the clean test image of this name is of class", corruption="fog", name="tiny_imagenet_c"
    )


def test_load_corrupted_ignores_a_stale_pack(tiny, monkeypatch):
    clean, root = tiny
    monkeypatch.setattr("mbcl.data.corrupted.official_sets._OFFICIAL", 7)
    options = {"corruption": "fog", "name": "tiny_imagenet_c"}
    assert pack(root) == 0
    path = next((root / "fog" / "3" / clean.classes[0]).iterdir())
    write_image(path, 5)
    with pytest.warns(UserWarning, match="fog-3.json is not used, the files have changed .*: 1 file, first fog/3/"):
        images = load(root, clean, **options).images
    assert_refused(root, clean, "have changed .*data.verify: strict", verify="strict", **options)
    assert pack(root) == 0
    assert torch.equal(load(root, clean, verify="strict", **options).images, images)
    pixels = next((root / "mbcl-pack").glob("*.npy"))
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert_refused(root, clean, f"{pixels}: damaged pack", **options)


def test_data_pack_refuses_what_it_cannot_pack(archive, tiny, capsys):
    assert main(["data", "pack", "--data", "cifar10_c", "--data-dir", str(archive)]) == 2
    assert "holds no folders of images to pack; its archives are read as they are" in capsys.readouterr().err
    clean, root = tiny
    path = next((root / "fog" / "3" / clean.classes[1]).iterdir())
    path.write_bytes(path.read_bytes()[:50])
    assert pack(root) == 2
    assert f"error: {path}: not a readable image" in capsys.readouterr().err
    assert main(["data", "pack", "--data", "tiny_imagenet_c"]) == 2
    assert "--data-dir is not given; expected folders CORRUPTION/SEVERITY" in capsys.readouterr().err


def test_corrupted_available_refuses_the_home_of_an_unknown_user(capsys):
    with pytest.raises(ConfigError, match="'~nobody_such/x', whose user has no home folder here"):
        data.corrupted_available("cifar10", "~nobody_such/x")
    options = ["--data", "image_folder", "--data-dir", "x", "--image-size", "8"]
    assert main(["data", "pack", *options, "--out", "~nobody_such/x"]) == 2
    assert capsys.readouterr().err == "error: found '~nobody_such/x', whose user has no home folder here\n"
