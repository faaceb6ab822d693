"""Data behind a URI: one process for each machine copies and checks it while the others wait."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import pack_cifar, write_cifar, write_image
from patience import PATIENCE, wait_for

from mbcl import data
from mbcl.cli import main
from mbcl.data.packs import node_cache
from mbcl.errors import ConfigError, DataError
from mbcl.io import store
from mbcl.io.uris import check_uri


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MBCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed_folder(tmp_path) -> Path:
    for number in range(6):
        write_image(tmp_path / f"images/train/{'ab'[number % 2]}/{number}.png", number, size=8)
        write_image(tmp_path / f"images/test/{'ab'[number % 2]}/{number}.png", 10 + number, size=8)
    assert main(["data", "pack", "--data", "image_folder", "--data-dir", str(tmp_path / "images")]) == 0
    return tmp_path / "images"


def load(folder: Path, **options) -> data.Splits:
    return data.load(options.pop("name", "image_folder"), dir=f"file://{folder}", **options)


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def count_reads(monkeypatch, at_once: int = 1) -> list[str]:
    """Record the large files read from a URI; no read ends before ``at_once`` reads have begun."""
    read: list[str] = []
    pieces = store.ArrowStore.pieces

    def slow(self, name):
        read.append(name)
        wait_for(lambda: len(read) >= at_once)
        yield from pieces(self, name)

    monkeypatch.setattr(store.ArrowStore, "pieces", slow)
    return read


def test_node_cache_copies_a_pack_once_with_the_same_images(packed_folder, cache, monkeypatch):
    expected = data.load("image_folder", dir=str(packed_folder))
    read = count_reads(monkeypatch)
    for place in (packed_folder, packed_folder, packed_folder / "mbcl-pack"):
        loaded = load(place)
        for a, b in ((expected.train, loaded.train), (expected.test, loaded.test)):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
            assert (a.files, a.classes) == (b.files, b.classes)
    assert len(read) == 1
    assert files(cache) == sorted(path.name for path in (packed_folder / "mbcl-pack").iterdir())
    assert len(load(packed_folder, max_samples=3).train) == 3


def test_node_cache_trusts_the_pack_over_its_source(packed_folder):
    expected = load(packed_folder)
    write_image(packed_folder / "train/a/new.png", 99, size=8)
    with pytest.warns(UserWarning, match="the files have changed"):
        assert len(data.load("image_folder", dir=str(packed_folder)).train) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(packed_folder, verify="strict").train.images, expected.train.images)


def test_node_cache_copies_in_one_thread_while_others_wait(packed_folder, monkeypatch):
    read = count_reads(monkeypatch)
    loaded: list[data.Splits] = []
    threads = [threading.Thread(target=lambda: loaded.append(load(packed_folder))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 1
    assert all(torch.equal(splits.train.images, loaded[0].train.images) for splits in loaded)
    assert len(loaded) == 6


def test_node_cache_without_file_locks_copies_in_each_thread(packed_folder, cache, monkeypatch):
    """``flock`` fails here with the error of Lustre mounted without ``-o flock``."""

    def flock_unsupported(stream, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock_unsupported)
    read = count_reads(monkeypatch, at_once=2)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, [packed_folder] * 4))
    assert 1 < len(read) <= 4
    assert all(torch.equal(splits.train.images, loaded[0].train.images) for splits in loaded)
    assert len(files(cache)) == 2


COPY_AND_HANG = """
import signal, sys
from mbcl import data
from mbcl.io import store as storage
def pieces(self, name):
    yield b"half"
    print("copying", flush=True)
    signal.pause()
storage.ArrowStore.pieces = pieces
data.load("image_folder", dir=sys.argv[1])
"""


def test_node_cache_recovers_from_a_copier_that_was_killed(packed_folder, cache):
    uri = f"file://{packed_folder}"
    process = subprocess.Popen([sys.executable, "-c", COPY_AND_HANG, uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "copying\n"
        waiting = threading.Thread(target=lambda: load(packed_folder))
        waiting.start()
        assert any(name.endswith(".tmp") for name in files(cache))
        os.kill(process.pid, signal.SIGKILL)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert len(files(cache)) == 2
    assert len(load(packed_folder).train) == 6


def test_node_cache_copies_a_new_pack(packed_folder, cache):
    load(packed_folder)
    write_image(packed_folder / "train/a/new.png", 99, size=8)
    assert main(["data", "pack", "--data", "image_folder", "--data-dir", str(packed_folder)]) == 0
    assert len(load(packed_folder).train) == 7
    assert len(list((cache / "packs").glob("*/"))) == 2


@pytest.mark.parametrize("damage", [b"\x00", b""])
def test_node_cache_refuses_and_removes_other_bytes(packed_folder, cache, damage):
    pixels = next((packed_folder / "mbcl-pack").glob("*.npy"))
    content = pixels.read_bytes()
    pixels.write_bytes(content[:-1] + damage)
    with pytest.raises(DataError, match="expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; nothing of it is kept"):
        load(packed_folder)
    assert files(cache) == []
    pixels.write_bytes(content)
    assert len(load(packed_folder).train) == 6


def test_node_cache_replaces_a_damaged_copy(packed_folder, cache):
    expected = load(packed_folder)
    (copy,) = cache.rglob("*.npy")
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="this machine's copy is made again"):
        loaded = load(packed_folder)
    every = torch.arange(len(expected.train))
    assert torch.equal(loaded.train.pixels(every), expected.train.pixels(every))
    assert copy.read_bytes() == content


REPLACE_IN_STEPS = """
import sys, warnings
from mbcl import data
from mbcl.data.datasets import registry as catalogue
calls = []
copy = catalogue.local_copy
def step(name):
    print(name, flush=True)
    assert sys.stdin.readline()
def local_copy(*arguments, **options):
    calls.append(arguments)
    again = len(calls) > 1
    if again:
        step("asks again")
    folder = copy(*arguments, **options)
    if again:
        step("has it again")
    return folder
catalogue.local_copy = local_copy
warnings.showwarning = lambda *_, **__: step("found it damaged")
print(data.load("image_folder", dir=sys.argv[1]).train.images.sum().item(), flush=True)
"""


def test_node_cache_replaces_a_damaged_copy_once_for_two_processes(packed_folder, cache):
    expected = str(load(packed_folder).train.images.sum().item())
    (copy,) = cache.rglob("*.npy")
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    command = [sys.executable, "-c", REPLACE_IN_STEPS, f"file://{packed_folder}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:

        def next_line(process: subprocess.Popen[str]) -> str:
            print(file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        assert [process.stdout.readline().strip() for process in (first, second)] == ["found it damaged"] * 2
        assert [next_line(first) for _ in range(2)] == ["asks again", "has it again"]
        inode = copy.stat().st_ino
        assert next_line(second) == "asks again"
        assert next_line(first) == expected
        assert [next_line(second) for _ in range(2)] == ["has it again", expected]
    assert (first.returncode, second.returncode) == (0, 0)
    assert (copy.stat().st_ino, copy.read_bytes()) == (inode, content)


def test_pack_whose_pixels_vanish_after_the_check_is_damaged(packed_folder, monkeypatch):
    (pixels,) = (packed_folder / "mbcl-pack").glob("*.npy")
    digest = hashlib.file_digest

    def digest_then_unlink(stream, name):
        value = digest(stream, name)
        pixels.unlink()
        return value

    monkeypatch.setattr(hashlib, "file_digest", digest_then_unlink)
    with pytest.raises(DataError, match="damaged pack: cannot be read: No such file"):
        data.load("image_folder", dir=str(packed_folder))


def test_node_cache_refuses_a_pack_with_a_path_outside(packed_folder, cache, tmp_path):
    from mbcl.data.packs import pack_file

    path = packed_folder / "mbcl-pack" / "image_folder.json"
    content = json.loads(path.read_text())
    content.pop("digest")
    content["data"]["file"] = "../../../stolen.npy"
    path.write_text(json.dumps(content | {"digest": pack_file._digest(content)}))
    with pytest.raises(DataError, match="damaged pack"):
        load(packed_folder)
    assert files(cache) == []
    with pytest.raises(DataError, match="damaged pack"):
        data.load("image_folder", dir=str(packed_folder))


@pytest.mark.filterwarnings("ignore:.*official:UserWarning")
def test_node_cache_copies_official_files(tmp_path, cache, monkeypatch):
    write_cifar(tmp_path / "bucket")
    archive = pack_cifar(tmp_path / "bucket")
    expected = data.load("cifar100", dir=str(tmp_path / "bucket"))
    read = count_reads(monkeypatch)
    for _ in range(2):
        loaded = load(tmp_path / "bucket", name="cifar100")
        assert torch.equal(loaded.train.images, expected.train.images)
    assert read == [archive.name]
    assert files(cache) == [archive.name, f"{archive.name}.sha256"]
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged archive"):
        load(tmp_path / "bucket", name="cifar100")


def write_fashion_mnist(folder: Path) -> None:
    folder.mkdir()
    for number, (part, num) in enumerate((("train", 6), ("t10k", 4))):
        pixels = np.random.default_rng(number).integers(0, 256, (num, 28, 28), dtype=np.uint8)
        header = np.array([0x803, num, 28, 28], dtype=">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.array([0x801, num], dtype=">u4").tobytes() + bytes(range(num))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.filterwarnings("ignore:.*official:UserWarning")
@pytest.mark.parametrize("damaged", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.sha256"])
def test_node_cache_replaces_a_damaged_official_file(tmp_path, cache, monkeypatch, damaged):
    write_fashion_mnist(tmp_path / "bucket")
    expected = load(tmp_path / "bucket", name="fashion_mnist").train.images
    (path,) = cache.rglob(damaged)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    read = count_reads(monkeypatch)
    with pytest.warns(UserWarning, match="train-images-idx3-ubyte: its content is not what was copied; this machine's"):
        images = load(tmp_path / "bucket", name="fashion_mnist").train.images
    assert torch.equal(images, expected)
    assert path.read_bytes() == content
    load(tmp_path / "bucket", name="fashion_mnist")
    assert read == ["train-images-idx3-ubyte"]


@pytest.mark.filterwarnings("ignore:.*official:UserWarning")
def test_node_cache_replaces_an_official_file_without_checksum(tmp_path, cache, monkeypatch):
    """A process that is killed between the two writes leaves this state."""
    write_fashion_mnist(tmp_path / "bucket")
    load(tmp_path / "bucket", name="fashion_mnist")
    before = files(cache)
    next(cache.rglob("t10k-labels-idx1-ubyte.sha256")).unlink()
    read = count_reads(monkeypatch)
    load(tmp_path / "bucket", name="fashion_mnist")
    assert read == ["t10k-labels-idx1-ubyte"]
    assert files(cache) == before


def test_node_cache_reports_what_it_cannot_copy_in_one_line(tmp_path, packed_folder, monkeypatch):
    with pytest.raises(DataError, match=r"tiny_imagenet: file:///\S+ holds no data to copy; expected a pack \(tiny_im"):
        load(packed_folder, name="tiny_imagenet")
    with pytest.raises(DataError, match="expected official files .*train-images-idx3-ubyte"):
        load(packed_folder, name="fashion_mnist")
    with pytest.raises(DataError, match=r"cifar10: .* holds no data .* or official files \(cifar-10-python.tar.gz\)"):
        load(tmp_path / "nothing", name="cifar10")
    with pytest.raises(ConfigError, match="nosuch://bucket/x: cannot be opened"):
        data.load("cifar10", dir="nosuch://bucket/x")
    with pytest.raises(ConfigError, match="download: found true, but dir is the URI"):
        load(packed_folder, download=True)
    with pytest.raises(ConfigError, match="corrupted sets are read from a folder that all nodes have"):
        data.corrupted_available("cifar10", "s3://bucket/CIFAR-10-C")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MBCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=f"cannot be copied to {tmp_path}/file: .*Not a directory"):
        load(packed_folder)


def test_load_refuses_a_uri_with_a_secret_without_repeating_it():
    for uri in ("s3://AKIAKEY:se/cret@bucket/x", "s3://AKIAKEY:sEcret@bucket/x", "abfs://:sEcret@account/x"):
        with pytest.raises(ConfigError, match="key") as caught:
            data.load("cifar10", dir=uri)
        assert "cret" not in str(caught.value)
        with pytest.raises(ConfigError) as caught:
            store.open_store(uri)
        assert "cret" not in str(caught.value)
    for uri in ("hdfs://host:9000/user/a@b", "gs://anonymous@bucket/x", "file:///a:b@c"):
        check_uri(uri)


def test_cache_folder_is_the_users_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MBCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert node_cache.cache_folder() == tmp_path / "mbcl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert node_cache.cache_folder() == Path("~/.cache/mbcl").expanduser()
