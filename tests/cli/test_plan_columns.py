"""``mbcl plan`` from columns of Parquet files and of folders that Hugging Face's ``datasets`` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from mbcl.cli.app import main
from mbcl.errors import ConfigError
from mbcl.io.columns import read_column, read_columns
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import build

N = 60
Z1 = np.random.default_rng(0).normal(size=(N, 6)).astype("float32")
Z2 = np.random.default_rng(1).normal(size=(N, 6)).astype("float32")
WIDE = np.random.default_rng(2).normal(size=(N, 9)).astype("float32")
IDS = np.array([f"document {number // 3}" for number in range(N)])


def plan(*options: object) -> int:
    return main(["plan", "--batch-size", "5", *map(str, options)])


def planned(z1: np.ndarray, z2: np.ndarray, name: str = "kmeans", **groups: Any) -> str:
    sampler = build(name, batch_size=5, pool=20)
    return sampler.plan(N, Embeddings(torch.from_numpy(z1), torch.from_numpy(z2)), **groups).digest


def lists(rows: np.ndarray, kind: str) -> pyarrow.Array:
    """A column of lists, as different writers make it."""
    if kind == "fixed":
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), rows.shape[1])
    value = pyarrow.from_numpy_dtype(rows.dtype)
    return pyarrow.array(list(rows), type=pyarrow.large_list(value) if kind == "large" else pyarrow.list_(value))


def save(folder: Path, columns: dict[str, pyarrow.Array], shards: int = 1) -> Path:
    """Write a folder as ``Dataset.save_to_disk`` does: streams of Arrow, and a state that names them."""
    folder.mkdir(parents=True)
    table, files = pyarrow.table(columns), []
    for number, part in enumerate(np.array_split(np.arange(table.num_rows), shards)):
        files.append({"filename": f"data-{number:05}-of-{shards:05}.arrow"})
        with pyarrow.OSFile(str(folder / files[-1]["filename"]), "wb") as sink:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.slice(part[0], len(part)), max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "f", "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_datasets(tmp_path, kind, shards) -> None:  # type: ignore[no-untyped-def]
    """With the columns of an embeddings file; texts are not read."""
    columns = {"z1": lists(Z1, kind), "z2": lists(Z2, kind), "apart": pyarrow.array(IDS), "text": pyarrow.array(IDS)}
    folder = save(tmp_path / "pairs", columns, shards)
    options = ["--sampler", "kmeans", "--set", "pool=20", "--check", "--out", tmp_path / "p.npz"]
    assert plan("--embeddings", folder, *options) == 0
    assert BatchPlan.load(tmp_path / "p.npz").digest == planned(Z1, Z2, apart=IDS)


def test_columns_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Each side and the ids from anywhere: a folder, a Parquet file, an .npy file."""
    folder = save(tmp_path / "a:b" / "pairs", {"query": lists(Z1, "list"), "document": pyarrow.array(IDS)})
    parquet.write_table(
        pyarrow.table({"answer": lists(Z2, "fixed"), "text": pyarrow.array(IDS)}), tmp_path / "z.parquet"
    )
    np.save(tmp_path / "z2.npy", Z2)
    common = ["--sampler", "kmeans", "--set", "pool=20", "--apart", f"{folder}:document", "--out", tmp_path / "p.npz"]
    for side in (f"{tmp_path}/z.parquet:answer", tmp_path / "z2.npy"):
        assert plan("--embeddings", f"{folder}:query", side, *common, "--overwrite") == 0
        assert BatchPlan.load(tmp_path / "p.npz").digest == planned(Z1, Z2, apart=IDS)


def test_sides_of_two_widths(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    for name, array in {"u": Z1, "v": WIDE}.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = ["--embeddings", tmp_path / "u.npy", tmp_path / "v.npy", "--set", "pool=20"]
    assert plan(*files, "--sampler", "kmeans", "--check", "--out", tmp_path / "p.npz") == 0
    assert "none, since the sides have 6 and 9 dimensions and cannot be compared" in capsys.readouterr().out
    assert BatchPlan.load(tmp_path / "p.npz").digest == planned(Z1, WIDE)
    assert plan(*files, "--sampler", "kmeans", "--json", "--out", tmp_path / "q.npz") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["widths"] == "6 and 9"
    assert "loss" not in printed
    for options, message in (
        (["--sampler", "refined"], "'refined' compares side one with side two, so both need one width: z1 has 6 dim"),
        (["--sampler", "kmeans", "--temperature", "0.2"], "a loss compares side one with side two, so both need one"),
    ):
        assert plan(*files, *options, "--out", tmp_path / "r.npz") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_data_set_that_datasets_wrote(tmp_path) -> None:  # type: ignore[no-untyped-def]
    datasets = pytest.importorskip("datasets")
    rows = {"z1": list(Z1), "z2": list(Z2), "id": IDS.tolist()}
    data = datasets.Dataset.from_dict(rows)
    data.save_to_disk(tmp_path / "whole", num_shards=2)
    order = np.random.default_rng(0).permutation(N)
    data.select(order).save_to_disk(tmp_path / "shuffled")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    for folder, expected in (("whole", np.arange(N)), ("splits/train", np.arange(N)), ("shuffled", order)):
        read = read_columns(tmp_path / folder, ("z1", "z2"), ("id",))
        np.testing.assert_array_equal(read["z1"], Z1[expected])
        np.testing.assert_array_equal(read["z2"], Z2[expected])
        np.testing.assert_array_equal(read["id"], IDS[expected])
    with pytest.raises(ConfigError, match=r"holds the splits train, test; name one: .*splits/train"):
        read_column(f"{tmp_path}/splits:z1")


def test_numbers_of_every_kind_are_read_as_they_are(tmp_path) -> None:  # type: ignore[no-untyped-def]
    columns = {
        "int8": pyarrow.array(np.arange(N, dtype="int8")),
        "uint64": pyarrow.array(np.arange(N, dtype="uint64") + 2**60),
        "category": pyarrow.array(IDS).dictionary_encode(),
        "large": pyarrow.array(IDS, type=pyarrow.large_string()),
        "half": lists(Z1.astype("float16"), "list"),
        "double": lists(Z1.astype("float64"), "fixed"),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "z.parquet")
    folder = save(tmp_path / "z", columns, 2)
    for source in (tmp_path / "z.parquet", folder):
        read = read_columns(source, tuple(columns))
        assert {name: read[name].dtype.kind for name in ("int8", "uint64", "category", "large")} == {
            "int8": "i", "uint64": "u", "category": "U", "large": "U"
        }  # fmt: skip
        np.testing.assert_array_equal(read["uint64"], np.arange(N, dtype="uint64") + 2**60)
        np.testing.assert_array_equal(read["category"], IDS)
        np.testing.assert_array_equal(read["half"], Z1.astype("float16"))
        assert read["double"].dtype == np.float64


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pyarrow.array([[1.0], [1.0, 2.0]]), "z must hold lists of one length"),
        (pyarrow.array([[[1.0]], [[2.0]]]), "z must hold lists of one length"),
        (pyarrow.array([[1.0], None]), "z: 1 rows are null"),
        (pyarrow.array([b"a", b"b"]), "z: expected numbers, strings or lists of numbers, found binary"),
        (pyarrow.array([{"a": 1}, {"a": 2}]), "z: expected numbers, strings or lists of numbers, found struct"),
    ],
    ids=["ragged", "nested", "null", "bytes", "struct"],
)
def test_columns_of_another_content_are_refused(tmp_path, column, message) -> None:  # type: ignore[no-untyped-def]
    folder = save(tmp_path / "z", {"z": column})
    parquet.write_table(pyarrow.table({"z": column}), tmp_path / "z.parquet")
    for source in (folder, tmp_path / "z.parquet"):
        with pytest.raises(ConfigError, match=message):
            read_column(f"{source}:z")


def test_folders_that_do_not_fit_are_refused(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    folder = save(tmp_path / "pairs", {"z1": lists(Z1, "list"), "text": pyarrow.array(IDS)})
    (tmp_path / "plain").mkdir()
    for name, state in {
        "words": "one two",
        "empty": "{}",
        "none": '{"_data_files": []}',
        "absent": '{"_data_files": [{"filename": "absent.arrow"}]}',
        "order": '{"_data_files": [], "_indices_files": [{"filename": "indices.arrow"}]}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(state)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    (tmp_path / "damaged" / "d.arrow").write_bytes(b"one two three")
    cases: dict[tuple[object, ...], str] = {
        (folder,): "holds no column 'z2'; it holds z1, text",
        (f"{folder}:z1", f"{folder}:z3"): "holds no column 'z3'; it holds z1, text",
        (f"{folder}:z1",): "expected one .npz or .parquet file or a folder of datasets, or two of .npy files and PATH",
        (folder, folder): "expected one .npz or .parquet file or a folder of datasets, or two of .npy files and PATH",
        (tmp_path / "plain",): "expected a folder that datasets' save_to_disk wrote; it has no state.json",
        (tmp_path / "words",): "words: not a folder of datasets: JSONDecodeError",
        (tmp_path / "empty",): "empty: not a folder of datasets: KeyError",
        (tmp_path / "none",): "none: the data set is empty",
        (tmp_path / "absent",): "absent: cannot be read: No such file or directory",
        (tmp_path / "order",): "order: the rows have an order of their own; save flatten_indices() of the data set",
        (tmp_path / "damaged",): "damaged: cannot be read",
        (f"{folder}:z1", f"{folder}:z1", "--apart", f"{folder}:z1"): "apart must have one id",
        (f"{folder}:z1", f"{folder}:z1", "--order", f"{folder}"): "--order: expected a file that ends in .npy",
    }
    for options, message in cases.items():
        assert plan("--embeddings", *options, "--sampler", "kmeans", "--out", tmp_path / "p.npz") == 2, options
        error = capsys.readouterr().err
        assert message in error, options
        assert error.count("\n") == 1
    assert not (tmp_path / "p.npz").exists()
