"""CIFAR-10 and CIFAR-100 in their official formats: reading, no execution of pickles, damage, download, checksums."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import CIFAR, cifar_batch, pack_cifar, pickled, write_cifar, write_image

from mbcl import data
from mbcl.data.images import stratified_rows
from mbcl.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:cifar:UserWarning")


def load(root: Path, name: str = "cifar100", **options) -> data.Splits:
    return data.load(name, dir=str(root), **options)


def assert_refused(root: Path, text: str, name: str = "cifar100", **options) -> str:
    with pytest.raises(DataError, match=text) as caught:
        load(root, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["python 2", "protocol 2", "protocol 4"])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_reads_its_official_files(tmp_path, name, by):
    batches = write_cifar(tmp_path, name, by=by)
    splits = load(tmp_path, name)
    *train, test = batches.values()
    label_key = CIFAR[name][2]
    for part, files in ((splits.train, train), (splits.test, [test])):
        pixels = np.concatenate([file[b"data"] for file in files])
        assert part.images.dtype == torch.uint8
        assert np.array_equal(part.images.numpy(), pixels.reshape(-1, 3, 32, 32))
        assert part.labels.tolist() == [label for file in files for label in file[label_key]]
        assert part.image_size == 32
    assert len(splits.train) == (100 if name == "cifar10" else 20)


def test_cifar_has_the_published_statistics_and_recipe(tmp_path):
    write_cifar(tmp_path)
    train = load(tmp_path).train
    assert train.mean == (0.5071, 0.4865, 0.4409)
    assert train.std == (0.2673, 0.2564, 0.2762)
    assert train.recipe == data.ViewRecipe()


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_equals_torchvision(tmp_path, name, monkeypatch):
    import torchvision

    dataset = getattr(torchvision.datasets, name.upper())
    monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    monkeypatch.setattr(dataset, "_load_meta", lambda self: None)
    write_cifar(tmp_path, name)
    splits = load(tmp_path, name)
    for train, part in ((True, splits.train), (False, splits.test)):
        expected = dataset(root=str(tmp_path), train=train)
        assert np.array_equal(expected.data, part.images.permute(0, 2, 3, 1).numpy())
        assert expected.targets == part.labels.tolist()


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("place", ["the folder", "its parent", "the archive's folder", "home"])
def test_cifar_finds_its_files_in_several_places(tmp_path, name, place, monkeypatch):
    write_cifar(tmp_path / "sets", name)
    if place == "the archive's folder":
        pack_cifar(tmp_path / "sets", name)
    monkeypatch.setenv("HOME", str(tmp_path))
    where = {"the folder": tmp_path / "sets" / CIFAR[name][0], "home": Path("~/sets")}
    assert len(load(where.get(place, tmp_path / "sets"), name).test) == 8


def test_cifar_reads_an_archive_without_extracting_it(tmp_path):
    write_cifar(tmp_path)
    expected = load(tmp_path)
    archive = pack_cifar(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded.train.images, expected.train.images)
    assert torch.equal(loaded.test.labels, expected.test.labels)
    assert list(tmp_path.iterdir()) == [archive]


def test_cifar_warns_about_other_counts(tmp_path, recwarn):
    write_cifar(tmp_path)
    with pytest.warns(UserWarning, match=r"20 training and 8 test images, the official set has 50,000 and 10,000"):
        load(tmp_path)


def test_cifar_of_official_counts_does_not_warn(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("mbcl.data.datasets.cifar.OFFICIAL_COUNTS", (20, 8))
    monkeypatch.setattr("mbcl.data.datasets.cifar.official_md5", lambda name: {})
    write_cifar(tmp_path)
    load(tmp_path)
    assert not recwarn.list


def test_cifar_takes_labels_as_an_array(tmp_path):
    batches = write_cifar(tmp_path)
    labels = np.array(batches["train"][b"fine_labels"], dtype=np.int64)
    content = pickled(batches["train"] | {b"fine_labels": labels}, "protocol 2")
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    assert load(tmp_path).train.labels.tolist() == labels.tolist()


def test_cifar_takes_max_samples(tmp_path):
    write_cifar(tmp_path)
    few, whole = (load(tmp_path, max_samples=num).train for num in (7, None))
    assert torch.equal(few.images, whole.images[stratified_rows(whole.labels, 7)])


# -- hostile pickles ------------------------------------------------------------------------------------------------


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("archive", [False, True])
def test_cifar_refuses_a_hostile_pickle_without_executing_it(tmp_path, protocol, archive):
    sets, witness = tmp_path / "sets", tmp_path / "witness"
    batches = write_cifar(sets)
    content = pickle.dumps(batches["train"] | {b"x": Evil(witness)}, protocol=protocol)
    (sets / "cifar-100-python" / "train").write_bytes(content)
    if archive:
        pack_cifar(sets)
    message = assert_refused(sets, r"cifar-100-python/train: refused: this pickle names .*")
    assert "pathlib" in message or "getattr" in message
    assert not witness.exists()
    pickle.loads(content)
    assert witness.exists(), "the pickle is hostile"


# -- damage --------------------------------------------------------------------------------------------------------

TRAIN = cifar_batch("cifar100", 20, 0)
PICKLED = pickled(TRAIN)
LABELS = TRAIN[b"fine_labels"]


def changed(**values) -> bytes:
    return pickled({**TRAIN, **{key.encode(): value for key, value in values.items()}})


DAMAGE = {
    "empty file": (b"", "damaged, cannot be read as a pickle: Ran out of input"),
    "truncated": (PICKLED[:-500], "damaged, cannot be read as a pickle: pickle data was truncated"),
    "truncated early": (PICKLED[:50], "damaged, cannot be read as a pickle"),
    "other bytes": (b"\x89PNG" + PICKLED, "damaged, cannot be read as a pickle"),
    "fewer bytes": (PICKLED.replace(b"M\x00\x0c", b"M\x01\x0c"), r"shape \(20, 3073\) with 61440 bytes"),
    "no mapping": (pickled([1]), "expected a pickled mapping, found list"),
    "no words": (pickled({1: 2}), "words as keys, found the key 1"),
    "no data": (pickled({b"fine_labels": LABELS}), "data: expected an array of bytes, N x 3072, found nothing"),
    "a list": (changed(data=[1]), "data: expected an array of bytes, N x 3072, found a list"),
    "floats": (changed(data=TRAIN[b"data"].astype("f4")), "found an array of float32, 20 x 3072"),
    "other size": (changed(data=TRAIN[b"data"][:, :3000]), "found an array of uint8, 20 x 3000"),
    "no images": (changed(data=TRAIN[b"data"][:0], fine_labels=[]), "found an array of uint8, 0 x 3072"),
    "no labels": (pickled({b"data": TRAIN[b"data"]}), "fine_labels: expected a list of whole numbers, found nothing"),
    "words": (changed(fine_labels=[b"1"] * 20), "fine_labels: expected a list of whole numbers, found a list"),
    "fewer labels": (changed(fine_labels=LABELS[1:]), "fine_labels: expected 20 labels, one an image, found 19"),
    "label 100": (changed(fine_labels=[*LABELS[1:], 100]), r"must be in 0..99, found 100 at position 19"),
    "label -1": (changed(fine_labels=[-1, *LABELS[1:]]), r"must be in 0..99, found -1 at position 0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_cifar_names_the_damaged_file_in_one_line(tmp_path, damage):
    content, text = DAMAGE[damage]
    write_cifar(tmp_path)
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(content)
    assert assert_refused(tmp_path, text).startswith(f"{path}: ")


@pytest.mark.parametrize("name, file", [("cifar100", "test"), ("cifar10", "data_batch_3")])
def test_cifar_names_a_missing_file(tmp_path, name, file):
    write_cifar(tmp_path, name)
    (tmp_path / CIFAR[name][0] / file).unlink()
    assert_refused(tmp_path, f"{CIFAR[name][0]}/{file}: cannot be read: No such file", name)


def test_cifar_refuses_damaged_archives(tmp_path):
    write_cifar(tmp_path)
    archive = pack_cifar(tmp_path)
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        archive.write_bytes(content)
        assert str(archive) in assert_refused(tmp_path, f"damaged archive of {len(content)} bytes|it lacks")
    with tarfile.open(archive, "w:gz") as stream:
        member = tarfile.TarInfo("cifar-100-python/train")
        member.size = len(PICKLED)
        stream.addfile(member, io.BytesIO(PICKLED))
    assert_refused(
        tmp_path, "cifar-100-python.tar.gz: it lacks cifar-100-python/test; expected cifar-100-python.tar.gz"
    )


@pytest.mark.parametrize("folder, problem", [("nowhere", "does not exist"), ("", "holds none of the files")])
def test_cifar_explains_a_missing_folder(tmp_path, folder, problem):
    message = assert_refused(tmp_path / folder, problem)
    for text in (str(tmp_path), "cifar-100-python.tar.gz", "train/CLASS/IMAGE", "download: true"):
        assert text in message
    with pytest.raises(DataError, match="cifar10: data.dir is not given; expected cifar-10-python.tar.gz"):
        data.load("cifar10")


# -- class folders -------------------------------------------------------------------------------------------------


def write_folders(root: Path, test: str = "test", size: int = 32) -> None:
    for part, num in (("train", 3), (test, 2)):
        for label, name in enumerate(("whale", "apple")):
            for number in range(num):
                write_image(root / part / name / f"{number}.png", 10 * label + number, size)


@pytest.mark.parametrize("test", ["test", "val"])
def test_cifar_reads_folders_of_classes(tmp_path, test):
    from torchvision.datasets import ImageFolder

    write_folders(tmp_path, test)
    splits = load(tmp_path)
    for folder, part in (("train", splits.train), (test, splits.test)):
        expected = ImageFolder(str(tmp_path / folder))
        assert part.labels.tolist() == expected.targets
        for (image, _), pixels in zip(expected, part.images, strict=True):
            assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.train.mean == (0.5071, 0.4865, 0.4409)


def test_cifar_refuses_folders_that_do_not_fit(tmp_path):
    write_folders(tmp_path, size=31)
    assert_refused(tmp_path, r"train/apple/0.png: expected 32 x 32 pixels, found 31 x 31")
    for number in range(9):
        (tmp_path / "train" / f"class {number}").mkdir()
    assert_refused(tmp_path, "train: expected at most 10 folders of classes, found 11", "cifar10")
    (tmp_path / "test").rename(tmp_path / "other")
    assert_refused(tmp_path, "has a folder train, but neither test nor val; expected cifar-100-python.tar.gz")


# -- download ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_downloads_only_missing_files(tmp_path, name, monkeypatch):
    def fetch(url, root, filename, md5):
        assert url.endswith(f"/{CIFAR[name][1]}")
        assert len(md5) == 32
        write_cifar(Path(root), name)
        assert pack_cifar(Path(root), name).name == filename

    def unpickle(*_):
        raise AssertionError("torchvision's class was used, which unpickles")

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}.__init__", unpickle)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    assert len(load(tmp_path, name, download=True).test) == 8
    monkeypatch.setattr("torchvision.datasets.utils.download_url", None)
    assert len(load(tmp_path, name, download=True).test) == 8


def test_cifar_reports_a_failed_download(tmp_path, monkeypatch):
    def fail(url, root, filename, md5):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    assert_refused(tmp_path, r"the download into .* failed \(no network\); expected cifar-100-python", download=True)
    with pytest.raises(ConfigError, match="download needs data.dir"):
        data.load("cifar100", download=True)


# -- checksums and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_warns_about_unofficial_files_and_strict_refuses(tmp_path, packed, monkeypatch):
    import hashlib

    write_cifar(tmp_path, "cifar10")
    names = "data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch"
    if packed:
        names = pack_cifar(tmp_path, "cifar10").name
    with pytest.warns(UserWarning, match=f"not the official checksum .MD5.: {names}"):
        load(tmp_path, "cifar10")
    assert_refused(tmp_path, f"not the official checksum .*{names} .*data.verify: strict", "cifar10", verify="strict")
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
    monkeypatch.setattr("mbcl.data.datasets.cifar.official_md5", lambda name: sums)
    monkeypatch.setattr("mbcl.data.datasets.cifar.OFFICIAL_COUNTS", (100, 8))
    assert len(load(tmp_path, "cifar10", verify="strict").test) == 8


def test_official_md5_equals_torchvisions_checksums():
    from torchvision.datasets import CIFAR10

    from mbcl.data.datasets.checksums import official_md5

    known = official_md5("CIFAR10")
    assert known["cifar-10-python.tar.gz"] == CIFAR10.tgz_md5
    assert known["test_batch"] == CIFAR10.test_list[0][1]
    assert len(official_md5("FashionMNIST")) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_reads_names_of_classes_and_files(tmp_path, packed):
    write_cifar(tmp_path)
    if packed:
        pack_cifar(tmp_path)
    test = load(tmp_path).test
    assert test.classes == tuple(f"class {label}" for label in range(100))
    assert test.files == tuple(f"image_{row:06d}" for row in range(8))
    assert test.subset(torch.tensor([3, 1])).files == ("image_000003", "image_000001")


def test_cifar_needs_no_class_names_but_refuses_damaged_ones(tmp_path):
    write_cifar(tmp_path)
    meta = tmp_path / "cifar-100-python" / "meta"
    meta.write_bytes(pickled({b"fine_label_names": [b"apple"]}))
    assert_refused(tmp_path, "meta: fine_label_names: expected 100 names of classes")
    meta.unlink()
    assert load(tmp_path).test.classes == ()
