"""Atomic writes: the whole new content or the old file, and no temporary file."""

from __future__ import annotations

import errno
import hashlib
from contextlib import nullcontext

import pytest

from mbcl.io import files


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), files.atomic_write(tmp_path / "a") as stream:
        stream.writelines([b"half", "no bytes"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_the_name_may_depend_on_the_content(tmp_path):
    digest = hashlib.sha256()
    with files.atomic_write(tmp_path / "a", name=lambda: digest.hexdigest()) as stream:
        stream.write(b"x")
        digest.update(b"x")
    (path,) = tmp_path.iterdir()
    assert path.name == files.file_digest(path) == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EINVAL, nullcontext()), (errno.EIO, pytest.raises(OSError, match="no"))]
)
def test_only_the_missing_sync_of_folders_is_passed_over(tmp_path, monkeypatch, number, expected):
    def refuse(path):
        raise OSError(number, "no")

    monkeypatch.setattr(files, "fsync", refuse)
    with expected, files.atomic_write(tmp_path / "a") as stream:
        stream.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
