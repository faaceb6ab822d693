"""Stores: local folders and pyarrow's filesystems behave alike, and never show half a file."""

from __future__ import annotations

import os

import pytest

from mbcl.errors import ConfigError
from mbcl.storage import ArrowStore, LocalStore, open_store, read_text, write_text


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


def test_a_uri_that_nothing_opens_is_bad_input():
    with pytest.raises(ConfigError, match="nosuch://bucket/x: cannot be opened"):
        open_store("nosuch://bucket/x")


def test_an_empty_path_or_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for location, text in (
        ("", "empty path"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(ConfigError, match=text):
            open_store(location)
