"""Pairs of a user's own arrays: files, parts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbcl import data
from mbcl.errors import ConfigError, DataError


def arrays(num: int = 20, widths: tuple[int, int] = (3, 5), seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"x{side}": generator.normal(size=(num, width)) for side, width in enumerate(widths, 1)}


def with_test(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return arrays() | {f"{name}_test": array for name, array in arrays(7, seed=1).items()} | changes


def save(folder, form: str, content: dict[str, np.ndarray]) -> str:
    """Write the arrays in one of the forms that are read; returns data.dir."""
    if form in ("file.npz", "pairs.npz"):
        np.savez(folder / form, **content)
        return str(folder / form if form == "file.npz" else folder)
    if form == "npy":
        for name, array in content.items():
            np.save(folder / f"{name}.npy", array)
        return str(folder)
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for part, suffix in (("train", ""), ("test", "_test")):
        names = [name for name in content if name.endswith("_test") == bool(suffix)]
        if names:
            columns = {name.removesuffix("_test"): list(content[name]) for name in names}
            parquet.write_table(pyarrow.table(columns), folder / f"{part}.parquet")
    return str(folder if form == "parquet" else folder / "train.parquet")


@pytest.mark.parametrize("form", ["file.npz", "pairs.npz", "npy", "parquet"])
def test_pairs_keep_their_texts(tmp_path, form):
    texts = np.array([f"pair {number}" for number in range(20)])
    splits = data.load("pairs", dir=save(tmp_path, form, arrays() | {"texts": texts}))
    x1 = torch.from_numpy(arrays()["x1"]).float()
    for part in (splits.train, splits.test):
        rows = [(x1 == x).all(dim=1).nonzero().item() for x in part.x1]
        shown = part.shown(torch.arange(len(part)))
        assert shown == [{"text": f"pair {row}"} for row in rows]


@pytest.mark.parametrize("form", ["file.npz", "pairs.npz", "npy", "parquet"])
def test_pairs_of_both_parts_are_the_arrays_of_the_files(tmp_path, form):
    content = with_test(labels=np.array(list("ab") * 10), labels_test=np.array(list("bcbcbcb")))
    splits = data.load("pairs", dir=save(tmp_path, form, content))
    for part, suffix in ((splits.train, ""), (splits.test, "_test")):
        assert torch.equal(part.x1, torch.from_numpy(content[f"x1{suffix}"]).float())
        assert torch.equal(part.x2, torch.from_numpy(content[f"x2{suffix}"]).float())
        assert part.labelled
        assert part.channels == (3, 5)
    assert splits.train.labels.tolist() == [0, 1] * 10
    assert splits.test.labels.tolist() == [1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("form", ["file.npz", "npy", "train.parquet"])
def test_pairs_without_a_test_part_get_one_of_whole_groups(tmp_path, form):
    content = arrays(40) | {"groups": np.repeat(np.arange(10), 4)}
    path = save(tmp_path, form, content)
    splits = data.load("pairs", dir=path, test=0.3)
    assert (len(splits.train), len(splits.test)) == (28, 12)
    assert not set(splits.train.groups.tolist()) & set(splits.test.groups.tolist())
    both = torch.cat([splits.train.x1, splits.test.x1]).double()
    assert sorted(both.tolist()) == sorted(torch.from_numpy(content["x1"]).float().double().tolist())
    again = data.load("pairs", dir=path, test=0.3)
    assert torch.equal(splits.test.x2, again.test.x2)
    assert not splits.train.labelled


def test_pairs_have_a_digest_of_their_arrays(tmp_path):
    """A training that goes on with other arrays is refused by it."""
    path = save(tmp_path, "file.npz", arrays())
    first = data.load("pairs", dir=path).train.sources
    assert data.load("pairs", dir=path).train.sources == first
    save(tmp_path, "file.npz", arrays(seed=2))
    assert data.load("pairs", dir=path).train.sources != first


NAN = arrays()
NAN["x1"][3, 1] = np.nan
LARGE = arrays()
LARGE["x2"][4, 0] = 1e300


@pytest.mark.parametrize(
    "content, message",
    [
        ({"x1": np.ones((4, 2))}, "holds no array 'x2'"),
        (arrays() | {"x3": np.ones(4)}, "unknown array 'x3'; known: groups"),
        (arrays() | {"x1": np.ones(20)}, r"x1 must be \(N, D\) numbers, found \(20,\) float64"),
        (arrays() | {"x1": np.ones((20, 0))}, r"x1 must be \(N, D\) numbers"),
        (arrays() | {"x1": np.full((20, 2), "a")}, "found .* <U1"),
        (arrays() | {"x2": np.ones((19, 2))}, "x1 has 20 rows, x2 has 19"),
        (NAN, "x1: 1 rows are not finite in float32, the first is 3"),
        (LARGE, "x2: 1 rows are not finite in float32, the first is 4"),
        (arrays() | {"labels": np.zeros(3, dtype=int)}, "labels must be a whole number or string for each of 20 rows"),
        (arrays() | {"groups": np.zeros(20)}, "groups must be a whole number or string"),
        (with_test(x1_test=np.ones((7, 4))), r"sides of \(3, 5\) numbers, in the test part \(4, 5\)"),
        (with_test(labels=np.zeros(20, dtype=int)), "only one of the training and the test part has labels"),
        (
            with_test(labels=np.zeros(20, dtype=int), labels_test=np.full(7, "a")),
            "labels are int64, labels_test are <U1",
        ),
        (arrays() | {"x1_test": np.ones((7, 3))}, "there is no x2_test"),
        (arrays() | {"x1": np.array([{}])}, "holds Python objects, which are not read"),
        (arrays() | {"groups": np.zeros(20, dtype=int)}, "needs at least 2 groups of them, found 1"),
    ],
)
def test_pairs_that_do_not_match_are_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        data.load("pairs", dir=save(tmp_path, "file.npz", content))


def test_a_misspelt_name_with_a_file_is_told_by_its_name(tmp_path):
    file = save(tmp_path, "file.npz", arrays())
    with pytest.raises(ConfigError, match="'pair'; did you mean 'pairs'"):
        data.load("pair", dir=file)
    with pytest.warns(UserWarning, match="data.dir and data.download are not used"):
        data.load("digits", dir=file)


def test_pairs_without_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="data.dir is not given; expected a .npz file"):
        data.load("pairs")
    with pytest.raises(DataError, match="holds none of the files"):
        data.load("pairs", dir=str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        data.load("pairs", dir=str(tmp_path / "none.npz" / "x"))
    with pytest.raises(DataError, match="cannot be read"):
        data.load("pairs", dir=str(tmp_path / "none.npz"))
    (tmp_path / "x1.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"x1\.npy: not an \.npy file"):
        data.load("pairs", dir=str(tmp_path))


def test_pairs_behind_a_uri_are_copied(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("MBCL_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    save(source, "npy", arrays())
    splits = data.load("pairs", dir=f"file://{source}")
    assert len(splits.train) + len(splits.test) == 20
    assert list((tmp_path / "cache" / "files").glob("pairs-*/x1.npy"))
