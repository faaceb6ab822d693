"""Functions and docstrings of installed packages: what is extracted, and what identifies it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from data.installed import WORDS, function, install, write_functions, write_package

from mbcl import data
from mbcl.data.code_docs import build, sources
from mbcl.data.code_docs.functions import functions_of
from mbcl.data.code_docs.vectors import vectors
from mbcl.data.packs.node_cache import locked
from mbcl.data.samples import differing_sources
from mbcl.errors import DataError

SOURCE = '''
import os

@decorated
def load_rows(path, *, batchSize=3, **kwargs):
    """Read all rows of a file; load_rows reads no more.

    More about it.
    """
    reader = os.openFile(path, mode="not a word of code")
    def inner_part(x):
        return reader.next_row(x)
    return [inner_part(each) for each in reader]

class Reader:
    async def close(self):
        """Close the underlying file handle at once."""
        while self.handle.isOpen(deadline=self.timeout_ms):
            if self.unread.bytes:
                def flush(stream):
                    """Flush what the stream has left to its file."""
                    stream.writeAll(buffered, pending=left, encoding=chosen).then(sync=whole)
                flush(self.handle)

    def without(self):
        return self.handle.first(second).third(fourth).fifth(sixth).seventh(eighth).ninth(tenth)

    def terse(self, value):
        """Terse."""
        return self.handle.first(second).third(fourth).fifth(sixth).seventh(eighth).ninth(tenth)

    def short(self, value):
        """Say much about what this one does."""
        return self.compute(value)
'''


def test_functions_have_the_words_of_their_bodies_and_first_paragraphs():
    loading, closing, flushing = functions_of(SOURCE.encode())
    titles = [each.title for each in (loading, closing, flushing)]
    assert titles[0] == "load_rows: Read all rows of a file; load_rows reads no more."
    assert titles[1:] == [
        "close: Close the underlying file handle at once.",
        "flush: Flush what the stream has left to its file.",
    ]
    assert loading.doc == ("read", "all", "rows", "of", "file", "reads", "no", "more")
    assert sorted(loading.code) == sorted(
        "path batch size reader os open file path mode inner part reader next row inner part each each reader".split()
    ), "neither the function's name, nor strings, nor what says nothing"
    assert closing.doc == ("close", "the", "underlying", "file", "handle", "at", "once")
    assert {"handle", "is", "open", "deadline", "timeout", "ms", "unread", "bytes", "flush", "stream"} < set(
        closing.code
    )
    assert flushing.doc[1:] == ("what", "the", "stream", "has", "left", "to", "its", "file")


@pytest.mark.parametrize("source", [b'"""\n{{ a template }}', b"x = '''\x00'''", b'"""' + b"(" * 10_000, b"\xff'''"])
def test_files_that_are_no_python_have_no_functions(source):
    assert list(functions_of(source)) == []


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with two packages, the only installed ones, and an empty cache."""
    root = tmp_path / "site"
    write_functions(root, 60)
    write_package(root, "beta", "2.1", {"beta/a.py": function(7), "beta/_vendor/c.py": function(1009)})
    write_package(root, "mbcl", "0", {"mbcl/a.py": function(1011)})
    install(root, tmp_path / "cache", monkeypatch)
    return root


def test_installed_packages_are_those_with_python_files_but_tests_and_copies(site):
    alpha, beta = sources.installed()
    assert (alpha.name, beta.name) == ("alpha-one", "beta")
    assert [name for name, _ in beta.files] == ["beta/a.py"]
    assert len(alpha.files) == 60
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert sources.versions([alpha, beta]) == {"python": python, "alpha-one": "1.0", "beta": "2.1"}


def test_copies_that_a_package_puts_on_the_path_are_left_out(tmp_path, monkeypatch):
    root = tmp_path / "site-packages"
    write_package(root, "host", "1.0", {"host/a.py": function(7)})
    inner = root / "host" / "copies"
    write_package(inner, "host", "3.0", {"host/a.py": function(8)})
    write_package(inner, "other", "2.0", {"other/a.py": function(9)})
    discover = sources.Distribution.discover
    monkeypatch.setattr(sources, "distributions", lambda: discover(path=[str(inner), str(root)]))
    assert [(each.name, each.version) for each in sources.installed()] == [("host", "1.0")]


def test_sources_of_a_project_are_no_installed_package(tmp_path, monkeypatch):
    """``python -m mbcl`` finds the .egg-info of its working directory first."""
    root, project = tmp_path / "site-packages", tmp_path / "project"
    write_package(root, "host", "1.0", {"host/a.py": function(7)})
    (project / "host.egg-info").mkdir(parents=True)
    (project / "host.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: host\nVersion: 1.0\n")
    (project / "host.egg-info" / "SOURCES.txt").write_text("host/b.py\n")
    (project / "host").mkdir()
    (project / "host" / "b.py").write_text(function(8))
    discover = sources.Distribution.discover
    monkeypatch.setattr(sources, "distributions", lambda: discover(path=[str(project), str(root)]))
    (package,) = sources.installed()
    assert [name for name, _ in package.files] == ["host/a.py"]


def test_packages_are_the_same_before_and_after_ray_is_imported():
    pytest.importorskip("ray")
    code = (
        "from mbcl.data.code_docs.sources import installed\n"
        "before = installed()\n"
        "import sys, ray\n"
        "assert any('thirdparty_files' in place for place in sys.path), 'ray has copies of packages'\n"
        "assert installed() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_docs_are_split_by_file_without_duplicates(site):
    splits = data.load("code_docs", dim=8)
    train, test = splits.train, splits.test
    assert train.channels == (8, 8)
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    both = torch.cat([train.x1, test.x1])
    assert both.isfinite().all()
    assert len(train) + len(test) == 120, "beta's function is one of alpha's"
    assert 0 < len(test) < 60
    lengths = torch.linalg.vector_norm(train.x1.double(), dim=1)
    assert lengths.numpy() == pytest.approx(np.sqrt(8), rel=1e-6)
    assert train.sources.keys() == {"python", "alpha-one", "beta", "text"}


def test_code_docs_are_the_same_again_and_from_the_cache(site, monkeypatch):
    first = data.load("code_docs", dim=8)
    made = build.make(sources.installed(), 8)
    monkeypatch.setattr(build, "make", lambda *arguments: pytest.fail("the cache has them"))
    again = data.load("code_docs", dim=8)
    assert torch.equal(again.train.x1, first.train.x1)
    for part in ("train", "test"):
        shown = [getattr(each, part).shown(torch.arange(3)) for each in (first, again)]
        assert shown[0] == shown[1]
        assert all(": " in sample["text"] for sample in shown[0])
    assert first.train.shown(torch.tensor([0])) != first.test.shown(torch.tensor([0]))
    assert torch.equal(again.test.x2, first.test.x2)
    assert again.train.sources == first.train.sources
    assert np.array_equal(made["x1"][~made["in_test"]], first.train.x1.numpy())


def test_code_docs_of_another_version_are_others(site):
    first = data.load("code_docs", dim=8).train.sources
    write_package(site, "gamma", "3.0", {"gamma/g.py": function(200)})
    differing = differing_sources(first, data.load("code_docs", dim=8).train.sources)
    assert "gamma was absent, now 3.0" in differing
    assert "text was " in differing


def test_code_docs_file_stays_in_its_part_when_packages_are_added(site):
    parts = []
    for added in ("aaa", "zzz"):
        made = build.make(sources.installed(), 8)
        names = [name for package in sources.installed() for name, _ in package.files]
        rows = zip(made["files"], made["in_test"], strict=True)
        parts.append({names[number - 1]: bool(in_test) for number, in_test in rows})
        write_package(site, added, "1", {f"{added}/m.py": function(300)})
    assert parts[1].items() > parts[0].items()
    assert parts[1].keys() - parts[0].keys() == {"aaa/m.py"}


def test_damaged_cache_is_made_again(site, tmp_path):
    first = data.load("code_docs", dim=8)
    (path,) = (tmp_path / "cache" / "code_docs").glob("*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="code_docs: .* it is made again") as warned:
        again = data.load("code_docs", dim=8)
    assert len(warned) == 1
    assert torch.equal(again.train.x1, first.train.x1)
    for part in ("train", "test"):
        shown = [getattr(each, part).shown(torch.arange(3)) for each in (first, again)]
        assert shown[0] == shown[1]
        assert all(": " in sample["text"] for sample in shown[0])
    assert first.train.shown(torch.tensor([0])) != first.test.shown(torch.tensor([0]))
    data.load("code_docs", dim=8)  # without a warning


def test_pairs_in_the_cache_are_read_while_another_process_makes_others(site, tmp_path):
    first = data.load("code_docs", dim=8)
    with locked(tmp_path / "cache" / "code_docs"):
        again = data.load("code_docs", dim=8)
    assert torch.equal(again.train.x1, first.train.x1)


def test_cache_that_cannot_be_written_is_named(site, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.warns(UserWarning, match="code_docs cannot be used: .*; the packages are parsed again"):
        splits = data.load("code_docs", dim=8)
    assert len(splits.train) > 50


def test_code_docs_without_functions_are_refused(site, monkeypatch):
    monkeypatch.setattr(sources, "distributions", lambda: [])
    with pytest.raises(DataError, match="no functions with docstrings"):
        data.load("code_docs")


def test_code_docs_with_too_few_words_are_refused(site):
    with pytest.raises(DataError, match="give fewer than 512 directions; found data.dim 512, allowed: at most"):
        data.load("code_docs", dim=512)


def test_code_docs_warns_of_a_folder(site, tmp_path):
    with pytest.warns(UserWarning, match="data.dir is not used"):
        data.load("code_docs", dim=8, dir=str(tmp_path))


def test_vectors_are_fitted_on_the_training_texts_alone():
    texts = [(WORDS[i % 8], WORDS[8 + i // 8], WORDS[i * 3 % 7]) for i in range(64)]
    in_training = np.arange(64) < 50
    other = texts[:50] + [("word", "never", "seen")] * 14
    first, second = vectors(texts, in_training, 4), vectors(other, in_training, 4)
    assert np.array_equal(first[:50], second[:50])
    assert not second[50:].any(), "no word is known"
