"""Stores: local folders and pyarrow's filesystems behave alike, and their writes are atomic."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mbcl.errors import ConfigError
from mbcl.io import store as storage
from mbcl.io.files import temporary_name
from mbcl.io.store import ArrowStore, LocalStore, open_store, read_text, write_text


@pytest.fixture(params=["path", "uri"])
def store(request, tmp_path):
    return open_store(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_open_store_chooses_the_class_by_location(tmp_path):
    assert isinstance(open_store(tmp_path), LocalStore)
    assert isinstance(open_store(f"file://{tmp_path}"), ArrowStore)


def test_store_writes_reads_lists_and_deletes(store):
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
    store.delete("missing")
    assert store.list("a") == []


def test_store_hides_temporary_files_and_no_others(store, tmp_path):
    names = [temporary_name("a"), ".hidden", "notes.tmp"]
    for name in names:
        (tmp_path / name).touch()
    assert store.list() == [".hidden", "notes.tmp"]


def test_store_handles_missing_names(store):
    assert not store.exists("x")
    assert store.list("x") == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("x")


def test_publish_copies_a_local_folder_into_the_store(store):
    folder = store.local_folder("events")
    (folder / "sub").mkdir()
    (folder / "sub" / "f.txt").write_text("hello")
    store.publish("events")
    assert read_text(store, "events/sub/f.txt") == "hello"


def test_local_store_keeps_the_old_content_after_a_failed_write(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    write_text(store, "f", "old")

    def disk_full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_text(store, "f", "new")
    monkeypatch.undo()
    assert read_text(store, "f") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("uri", ["s3://bucket/results?region=us-west-2", "s3://bucket/results/?region=us-west-2"])
def test_arrow_store_keeps_the_query_behind_the_path(uri):
    from mbcl.orchestration.results_folder.layout import scratch

    store = open_store(uri)
    assert store.uri == "s3://bucket/results?region=us-west-2"
    trial = store.child("trials").child("000-a")
    assert trial.uri == "s3://bucket/results/trials/000-a?region=us-west-2"
    assert trial._path("config.yaml") == "bucket/results/trials/000-a/config.yaml"
    assert open_store(trial.uri)._path("x") == trial._path("x")
    assert scratch(store) == "s3://bucket/results/.ray?region=us-west-2"


@pytest.mark.parametrize("key", ["secret_key", "client_secret", "sas_token", "sig", "Password", "account%5Fkey"])
def test_open_store_refuses_a_secret_in_the_query_without_repeating_it(key):
    with pytest.raises(ConfigError, match=r"s3://bucket/x\?.*=… with a password or key in it") as caught:
        open_store(f"s3://bucket/x?region=us-west-2&{key}=hidden")
    assert "hidden" not in str(caught.value)


def test_arrow_store_writes_atomically_and_durably(tmp_path, monkeypatch):
    store = ArrowStore(f"file://{tmp_path}")
    write_text(store, "f", "old")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_text(store, "folder", "new")  # a file cannot replace a non-empty folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "folder"]
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or fsync(descriptor))
    write_text(store, "f", "new")
    assert len(synced) == 2, "the file and its folder"


def test_local_folder_is_removed_with_its_process(tmp_path):
    code = f"""
from mbcl.io.store import open_store
store = open_store("file://{tmp_path}/store")
print(store.local_folder("events"))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(str(tmp_path))
    assert list(tmp_path.glob("mbcl-*")) == []


def test_open_store_refuses_an_unknown_scheme():
    with pytest.raises(ConfigError, match="nosuch://bucket/x: cannot be opened"):
        open_store("nosuch://bucket/x")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "gs://", "gs://?project_id=mine", "s3://?region=us-west-2"])
def test_open_store_refuses_a_uri_without_a_bucket(uri):
    with pytest.raises(ConfigError, match=r"s3://bucket/folder$") as caught:
        open_store(uri)
    assert f"found the URI {uri}, which names no bucket" in str(caught.value)


def test_arrow_store_limits_retries_of_google_storage(monkeypatch):
    monkeypatch.setattr(storage, "GCS_SECONDS", 1)
    uri = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:1&scheme=http"  # a closed port
    store = open_store(uri)
    assert store.uri == uri, "the URI of the store omits the limit"
    with pytest.raises(OSError, match="Retry policy exhausted"):
        store.exists("study.json")
    assert storage._limited("gs://bucket", "") == "?retry_limit_seconds=1", "Google's own limit is 15 minutes"
    assert storage._limited("gs://bucket", "?retry_limit_seconds=300") == "?retry_limit_seconds=300"
    assert storage._limited("s3://bucket", "") == ""


def test_open_store_expands_the_home_folder_of_known_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/results").uri == str(tmp_path / "results")
    with pytest.raises(ConfigError, match="found '~nobody_such/x', whose user has no home folder here"):
        open_store("~nobody_such/x")


def test_open_store_refuses_an_empty_path_and_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for location, text in (
        ("", "empty path"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(ConfigError, match=text):
            open_store(location)
