"""Stores: local folders and pyarrow's filesystems behave alike, and never show half a file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mbcl.errors import ConfigError
from mbcl.io import store as storage
from mbcl.io.store import ArrowStore, LocalStore, open_store, read_text, write_text


@pytest.fixture(params=["path", "uri"])
def store(request, tmp_path):
    return open_store(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_the_kind_follows_from_the_location(tmp_path):
    assert isinstance(open_store(tmp_path), LocalStore)
    assert isinstance(open_store(f"file://{tmp_path}"), ArrowStore)


def test_write_read_list_delete(store):
    write_text(store, "a/b/c.txt", "one")
    write_text(store, "a/b/c.txt", "two")
    store.write_bytes("a/d.bin", b"\x00\xff")
    assert read_text(store, "a/b/c.txt") == "two"
    assert store.read_bytes("a/d.bin") == b"\x00\xff"
    assert store.list("a") == ["b", "d.bin"]
    assert store.exists("a/b")
    assert store.child("a").list() == ["b", "d.bin"]
    store.delete("a/b")
    store.delete("a/d.bin")
    store.delete("never there")
    assert store.list("a") == []


def test_what_is_not_there(store):
    assert not store.exists("x")
    assert store.list("x") == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("x")


def test_a_local_folder_becomes_part_of_the_store(store):
    folder = store.local_folder("events")
    (folder / "sub").mkdir()
    (folder / "sub" / "f.txt").write_text("hello")
    store.publish("events")
    assert read_text(store, "events/sub/f.txt") == "hello"


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    write_text(store, "f", "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(store, "f", "new")
    monkeypatch.undo()
    assert read_text(store, "f") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("uri", ["s3://bucket/results?region=us-west-2", "s3://bucket/results/?region=us-west-2"])
def test_what_follows_a_question_mark_stays_behind_the_path(uri):
    from mbcl.orchestration.results_folder.layout import scratch

    store = open_store(uri)
    assert store.uri == "s3://bucket/results?region=us-west-2"
    trial = store.child("trials").child("000-a")
    assert trial.uri == "s3://bucket/results/trials/000-a?region=us-west-2"
    assert trial._path("config.yaml") == "bucket/results/trials/000-a/config.yaml"
    assert open_store(trial.uri)._path("x") == trial._path("x")
    assert scratch(store) == "s3://bucket/results/.ray?region=us-west-2"


@pytest.mark.parametrize("key", ["secret_key", "client_secret", "sas_token", "sig", "Password", "account%5Fkey"])
def test_a_secret_behind_a_question_mark_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError, match=r"s3://bucket/x\?.*=… with a password or key in it") as caught:
        open_store(f"s3://bucket/x?region=us-west-2&{key}=hidden")
    assert "hidden" not in str(caught.value)


def test_a_write_that_fails_behind_a_uri_leaves_no_litter_and_one_that_succeeds_lasts(tmp_path, monkeypatch):
    store = ArrowStore(f"file://{tmp_path}")
    write_text(store, "f", "old")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_text(store, "folder", "new")  # nothing moves over a folder that holds something
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "folder"]
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or fsync(descriptor))
    write_text(store, "f", "new")
    assert len(synced) == 2, "the file, and the folder that names it"


def test_a_local_folder_goes_with_its_process(tmp_path):
    code = f"""
from mbcl.io.store import open_store
store = open_store("file://{tmp_path}/store")
print(store.local_folder("events"))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(str(tmp_path))
    assert list(tmp_path.glob("mbcl-*")) == []


def test_a_uri_that_nothing_opens_is_bad_input():
    with pytest.raises(ConfigError, match="nosuch://bucket/x: cannot be opened"):
        open_store("nosuch://bucket/x")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "gs://", "gs://?project_id=mine", "s3://?region=us-west-2"])
def test_a_uri_without_a_bucket_is_bad_input(uri):
    with pytest.raises(ConfigError, match=r"s3://bucket/folder$") as caught:
        open_store(uri)
    assert f"found the URI {uri}, which names no bucket" in str(caught.value)


def test_googles_storage_is_not_tried_for_longer_than_the_limit(monkeypatch):
    monkeypatch.setattr(storage, "GCS_SECONDS", 1)
    where = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:1&scheme=http"  # nothing listens there
    store = open_store(where)
    assert store.uri == where, "the limit is no part of what a person gave"
    with pytest.raises(OSError, match="Retry policy exhausted"):
        store.exists("study.json")
    assert storage._limited("gs://bucket", "") == "?retry_limit_seconds=1", "Google's own limit is 15 minutes"
    assert storage._limited("gs://bucket", "?retry_limit_seconds=300") == "?retry_limit_seconds=300"
    assert storage._limited("s3://bucket", "") == ""


def test_a_home_folder_is_found_and_that_of_nobody_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/results").uri == str(tmp_path / "results")
    with pytest.raises(ConfigError, match="found '~nobody_such/x', whose user has no home folder here"):
        open_store("~nobody_such/x")


def test_an_empty_path_or_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for location, text in (
        ("", "empty path"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(ConfigError, match=text):
            open_store(location)
