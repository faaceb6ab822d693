"""``mbcl plan`` with groups, other formats of embeddings, and an order of rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from mbcl.cli.app import main
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import build

N = 60
Z1, Z2 = (np.random.default_rng(0).normal(size=(2, N, 6))).astype("float32")
APART = np.arange(N) // 3
TOGETHER = np.array(["de", "en"])[(np.arange(N) >= 25).astype(int)]
COMMON = ["--sampler", "{name: kmeans, pool: 20}", "--batch-size", "5"]


def plan(*options: object) -> int:
    return main(["plan", *map(str, options)])


def expected(**groups: object) -> BatchPlan:
    sampler = build("kmeans", batch_size=5, pool=20)
    return sampler.plan(N, Embeddings(torch.from_numpy(Z1), torch.from_numpy(Z2)), **groups)  # type: ignore[arg-type]


def write_npz(folder: Path, order: np.ndarray, **columns: np.ndarray) -> list[Path]:
    path = folder / "z.npz"
    np.savez(path, z1=Z1[order], z2=Z2[order], indices=order, **columns)
    return [path]


def write_parquet(folder: Path, order: np.ndarray, **columns: np.ndarray) -> list[Path]:
    path = folder / "z.parquet"
    arrays = {
        "z1": pyarrow.array(list(Z1[order])),
        "z2": pyarrow.array(list(Z2[order])),
        "indices": pyarrow.array(order),
    }
    parquet.write_table(pyarrow.table({**arrays, **{key: pyarrow.array(list(x)) for key, x in columns.items()}}), path)
    return [path]


@pytest.mark.parametrize("write", [write_npz, write_parquet])
def test_columns_of_the_embeddings_file(write, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    """Ids follow the order of the rows, as labels do."""
    order = np.random.default_rng(1).permutation(N)
    paths = write(tmp_path, order, apart=APART[order], together=TOGETHER[order], labels=APART[order])
    assert plan("--embeddings", *paths, *COMMON, "--json", "--check", "--out", tmp_path / "p.npz") == 0
    written, right = BatchPlan.load(tmp_path / "p.npz"), expected(apart=APART, together=TOGETHER)
    assert written.digest == right.digest
    printed = json.loads(capsys.readouterr().out)
    assert (printed["conflicts"], printed["same_class"]) == (0, 0.0)


def test_options_and_npy_files(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    files = {"u": Z1, "v": Z2, "apart": APART, "together": TOGETHER}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    embeddings = ["--embeddings", tmp_path / "u.npy", tmp_path / "v.npy"]
    groups = ["--apart", tmp_path / "apart.npy", "--together", tmp_path / "together.npy"]
    out = ["--out", tmp_path / "p.npz", "--order", tmp_path / "new" / "rows.npy"]
    assert plan(*embeddings, *COMMON, *groups, *out) == 0
    assert "0 pairs of a sample and one that is no negative of it could not be kept apart" in capsys.readouterr().out
    right = expected(apart=APART, together=TOGETHER)
    assert BatchPlan.load(tmp_path / "p.npz").digest == right.digest
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "rows.npy"), right.batches.flatten())
    assert plan(*embeddings, *COMMON, *groups, "--out", tmp_path / "q.npz", *out[2:]) == 2
    assert "rows.npy: is there already; add --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "q.npz").exists()
    assert plan(*embeddings, *COMMON, *out, "--overwrite") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "rows.npy"), expected().batches.flatten())
    capsys.readouterr()
    shuffled = ["--num-samples", N, "--sampler", "shuffle", "--batch-size", 5, *groups, "--out", tmp_path / "s.npz"]
    assert plan(*shuffled) == 0
    right = build("shuffle", batch_size=5).plan(N, apart=APART, together=TOGETHER)
    assert BatchPlan.load(tmp_path / "s.npz").digest == right.digest


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--apart", "short.npy"], "apart must have one id for each of 60 samples, found"),
        (["--together", "floats.npy"], "together: ids must be whole numbers or strings, found float64"),
        (["--apart", "objects.npy"], "objects.npy: holds Python objects, which are not read"),
        (["--apart", "words.npy"], "words.npy: not an .npy file"),
        (["--apart", "absent.npy"], "absent.npy: cannot be read: No such file or directory"),
        (["--together", "different.npy"], "batch_size 5 is above the 1 samples of the largest of 60 sources"),
        (["--order", "rows.txt"], "--order: expected a file that ends in .npy, found 'rows.txt'"),
        (["--order", "u.npy"], "--order: u.npy is an input, too"),
    ],
)
def test_files_that_do_not_fit_are_refused(options, found, tmp_path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    np.save("u.npy", Z1)
    np.save("v.npy", Z2)
    np.save("short.npy", APART[:-1])
    np.save("floats.npy", APART / 2)
    np.save("objects.npy", np.array([{}] * N, dtype=object))
    np.save("different.npy", np.arange(N))
    Path("words.npy").write_text("one two")
    assert plan("--embeddings", "u.npy", "v.npy", *COMMON, *options, "--out", "p.npz") == 2
    error = capsys.readouterr().err
    assert found in error.replace("an array of shape", "found").replace("found, found", "found")
    assert error.count("\n") == 1
    assert not Path("p.npz").exists()


def test_embeddings_that_do_not_fit_are_refused(tmp_path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    np.save("u.npy", Z1)
    np.save("wide.npy", np.ones((N, 7), dtype="float32"))
    np.savez("z.npz", z1=Z1, z2=Z2, apart=APART)
    np.save("apart.npy", APART)
    parquet.write_table(pyarrow.table({"z1": [[1.0], [1.0, 2.0]], "z2": [[1.0], [2.0]]}), "ragged.parquet")
    parquet.write_table(pyarrow.table({"z1": [[1.0]], "z3": [[1.0]]}), "other.parquet")
    Path("words.parquet").write_text("one two")
    for files, found in {
        ("u.npy",): "or two of .npy files and PATH:COLUMN, found u.npy",
        ("u.npy", "z.npz"): "or two of .npy files and PATH:COLUMN, found u.npy z.npz",
        ("u.npy", "wide.npy", "--set", "relative_margin=0.1"): "with a margin compares side one with side two, so both",
        ("ragged.parquet",): "ragged.parquet: z1 must hold lists of one length",
        ("other.parquet",): "other.parquet: unknown column 'z3'",
        ("words.parquet",): "words.parquet: cannot be read",
        ("absent.parquet",): "absent.parquet: cannot be read: No such file or directory",
        ("z.npz", "--apart", "apart.npy"): "the embeddings file has a column 'apart', too",
    }.items():
        assert plan("--embeddings", *files, *COMMON, "--out", "p.npz") == 2
        error = capsys.readouterr().err
        assert found in error
        assert error.count("\n") == 1
