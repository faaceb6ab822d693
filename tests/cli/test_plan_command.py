"""The command ``mbcl plan``: the written plan, the printed table, errors in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbcl.cli import main
from mbcl.errors import ConfigError
from mbcl.io.npz import read_arrays
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planning.console import _bound
from mbcl.planning.embeddings_file import read_embeddings
from mbcl.samplers import SAMPLERS, Shuffle, build, quality
from mbcl.samplers._measures import overlap, same_class_share, upper_bound

N = 130
UNUSUAL = ("osgd", "full", "all_batches", "osgd_exhaustive")
"""Samplers whose plans are not N // B batches of B."""
LABELS = np.arange(N) % 5


def views(dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z1 = rng.standard_normal((N, dim), dtype=np.float32) + LABELS[:, None]
    return z1, z1 + 0.3 * rng.standard_normal((N, dim), dtype=np.float32)


@pytest.fixture
def embeddings_path(tmp_path: Path) -> Path:
    z1, z2 = views()
    np.savez(tmp_path / "z.npz", z1=z1, z2=z2, labels=LABELS)
    return tmp_path / "z.npz"


def plan(*options: str) -> int:
    try:
        return main(["plan", *options])
    except SystemExit as exited:
        return int(exited.code or 0)


def error_line(capsys: pytest.CaptureFixture[str], *options: str, code: int = 2) -> str:
    """The one line of error of a command that is refused."""
    assert plan(*options) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_plan_writes_the_plan_of_the_sampler(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.npz"
    options = ["--embeddings", str(embeddings_path), "--sampler", "{name: sc_even, k: 2}", "--set", "mix=0.25"]
    assert plan(*options, "--batch-size", "16", "--seed", "3", "--epoch", "4", "--round", "1", "--out", str(out)) == 0
    z1, z2 = (torch.from_numpy(z) for z in views())
    sampler = build("spectral", batch_size=16, k=2, mix=0.25)
    expected_plan = sampler.plan(N, Embeddings(z1, z2), seed=3, epoch=4, round=1)
    written = BatchPlan.load(out)
    assert (written.digest, written.sampler, written.seed, written.epoch, written.round) == (
        expected_plan.digest,
        "spectral",
        3,
        4,
        1,
    )
    assert [path.name for path in out.parent.iterdir()] == ["a.npz"]
    text = capsys.readouterr().out
    for expected in (
        "8 of 16, 98.4615% of 130 samples",
        expected_plan.digest,
        "times random batches",
        "same class",
        str(out),
    ):
        assert expected in text


def test_plan_prints_what_the_library_measures(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--embeddings", str(embeddings_path), "--batch-size", "10", "--seed", "2"]
    assert plan(*common, "--sampler", "shuffle", "--out", str(tmp_path / "other.npz")) == 0
    capsys.readouterr()
    settings = ["--set", "skip=1", "--set", "pool=50"]
    compare = ["--compare", str(tmp_path / "other.npz"), "--check", "--json", "--temperature", "0.4"]
    assert plan(*common, "--sampler", "refined", *settings, *compare, "--out", str(tmp_path)) == 0
    printed = json.loads(capsys.readouterr().out)
    z = Embeddings(*(torch.from_numpy(view) for view in views()))
    written, other = BatchPlan.load(tmp_path / "plan.npz"), BatchPlan.load(tmp_path / "other.npz")
    nt_xent = quality(written, z, temperature=0.4, seed=2)
    clip = quality(written, z, temperature=0.4, seed=2, loss="clip")
    bound = upper_bound(written, z, temperature=0.4)
    shared, same = overlap(written, other, N), same_class_share(written, torch.from_numpy(LABELS))
    repeated = build("refined", batch_size=10, skip=1, pool=50).plan(N, z, seed=2)
    assert printed.pop("seconds") > 0
    assert printed == {
        "sampler": "refined",
        "parameters": repr(build("refined", batch_size=10, skip=1, pool=50)),
        "same_when_planned_again": True,
        "samples": N,
        "batches": 13,
        "batch_size": 10,
        "coverage": 1.0,
        "temperature": 0.4,
        "loss": nt_xent["loss"],
        "lift": nt_xent["lift"],
        "bound": bound.value,
        "bound_anchors": 260,
        "bound_standard_error": 0.0,
        "loss_of_bound": nt_xent["loss"] / bound.value,
        "clip_loss": clip["loss"],
        "clip_lift": clip["lift"],
        "overlap": shared.value,
        "overlap_of_random": shared.expected,
        "coverage_of_other": 1.0,
        "same_class": same.value,
        "same_class_of_random": same.expected,
        "conflicts": repeated.conflicts,
        "digest": repeated.digest,
        "plan": str(tmp_path / "plan.npz"),
    }


@pytest.mark.parametrize(("setting", "expected"), [([], 0.2), (["--temperature", "0.5"], 0.5)])
def test_plan_temperature_defaults_to_that_of_the_sampler(
    setting: list[str], expected: float, embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--embeddings", str(embeddings_path), "--sampler", "{name: spectral, k: 2, temperature: 0.2}", "--json"]
    assert plan(*options, *setting, "--out", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == expected


def test_plan_without_embeddings_prints_no_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-samples", "50", "--sampler", "s", "--batch-size", "8", "--out", str(tmp_path)]
    assert plan(*options) == 0
    text = capsys.readouterr().out
    assert "6 of 8, 96.0000% of 50 samples" in text
    assert "loss" not in text
    assert BatchPlan.load(tmp_path / "plan.npz").digest == Shuffle(batch_size=8).plan(50).digest


def test_plan_json_has_null_for_ratios_of_a_zero_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = np.eye(8, dtype=np.float32)
    np.savez(tmp_path / "z.npz", z1=z, z2=z)
    options = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "shuffle", "--batch-size", "4", "--json"]
    assert plan(*options, "--temperature", "0.001", "--out", str(tmp_path)) == 0
    text = capsys.readouterr().out
    printed = json.loads(text)
    assert (printed["loss"], printed["lift"], printed["loss_of_bound"]) == (0.0, None, None)
    assert "NaN" not in text


def test_plan_replaces_a_file_only_with_overwrite(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--embeddings", str(embeddings_path), "--sampler", "shuffle"]
    out = tmp_path / "plan.npz"
    assert plan(*options, "--out", str(out)) == 0
    before = out.read_bytes()
    capsys.readouterr()
    for target in (str(out), str(tmp_path), f"{tmp_path}/"):
        assert f"{out}: is there already; add --overwrite" in error_line(
            capsys, *options, "--seed", "1", "--out", target
        )
    assert out.read_bytes() == before
    assert plan(*options, "--seed", "1", "--overwrite", "--out", str(out)) == 0
    assert BatchPlan.load(out).seed == 1


def test_plan_out_accepts_relative_files_and_folders(
    embeddings_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target, written in (("b.npz", "b.npz"), ("sub/c.npz", "sub/c.npz"), ("d", "d/plan.npz"), (".", "plan.npz")):
        assert plan("--embeddings", embeddings_path.name, "--sampler", "shuffle", "--out", target) == 0
        assert BatchPlan.load(tmp_path / written).batches.shape == (4, 32)


def test_plan_check_refuses_a_sampler_that_is_not_reproducible(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Restless(Shuffle):
        name = "restless"

        def rows(self, num_samples, embeddings, *key):
            calls.append(num_samples)
            return super().rows(num_samples, embeddings, *key[:-1], key[-1] + len(calls))

    monkeypatch.setitem(SAMPLERS._parts, "restless", Restless)
    options = [
        "--embeddings",
        str(embeddings_path),
        "--sampler",
        "restless",
        "--check",
        "--out",
        str(tmp_path / "p.npz"),
    ]
    assert "planned twice, the digests are " in error_line(capsys, *options, code=1)
    assert not (tmp_path / "p.npz").exists()


def test_plan_refuses_a_plan_of_another_shape_than_promised(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Shuffle):
        name = "forgetful"

        def plan(self, *arguments: object, **keywords: object) -> BatchPlan:
            full_plan = super().plan(*arguments, **keywords)  # type: ignore[arg-type]
            return BatchPlan(full_plan.batches[1:], self.name)

    monkeypatch.setitem(SAMPLERS._parts, "forgetful", Forgetful)
    options = ["--embeddings", str(embeddings_path), "--sampler", "forgetful", "--out", str(tmp_path / "p.npz")]
    assert "forgetful: (4, 32) batches were promised, found (3, 32)" in error_line(capsys, *options, code=1)


def test_plan_ends_with_one_line_where_a_sampler_raises(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Shuffle):
        name = "failing"

        def plan(self, *arguments: object, **keywords: object) -> BatchPlan:
            raise ZeroDivisionError("by zero")

    monkeypatch.setitem(SAMPLERS._parts, "failing", Failing)
    out = tmp_path / "p.npz"
    assert plan("--embeddings", str(embeddings_path), "--sampler", "failing", "--out", str(out)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: planning failed: ZeroDivisionError: by zero"
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sampler", "spektral"], "unknown sampler 'spektral'; did you mean 'spectral'?"),
        (["--sampler", "{name: spectral, kk: 4}"], "sampler 'spectral': kk: unknown key; did you mean 'k'?"),
        (["--sampler", "spectral", "--set", "k=many"], "sampler 'spectral': k: "),
        (["--sampler", "spectral", "--set", "k=0"], "k must be a whole number >= 1, found 0"),
        (["--sampler", "spectral", "--set", "batch_size=8"], "sampler 'spectral': batch_size: unknown key"),
        (["--sampler", "spectral", "--set", "k"], "--set k: expected KEY=VALUE"),
        (["--sampler", "{name: spectral"], "--sampler, line 1: not YAML"),
        (["--sampler", "[spectral]"], "--sampler: expected a name or a block such as {name: ...}"),
        (["--sampler", ""], "--sampler: expected a name or a block"),
        (["--sampler", "{k: 4}"], "--sampler: expected a name or a block"),
        (["--sampler", "osgd"], "1500 * 32 = 48000 is above the 130 samples"),
        (["--sampler", "osgd", "--set", "score=objective", "--set", "k=2", "--set", "q=1"], "needs an objective"),
        (["--sampler", "shuffle", "--batch-size", "1"], "batch_size must be a whole number >= 2, found 1"),
        (["--sampler", "shuffle", "--batch-size", "131"], "batch_size 131 is above the 130 samples"),
        (["--sampler", "shuffle", "--batch-size", "many"], "invalid int value: 'many'"),
        (["--sampler", "shuffle", "--temperature", "0"], "temperature must be > 0, found 0.0"),
        (["--sampler", "shuffle", "--temperature", "nan"], "temperature must be a number > 0, found nan"),
        (["--sampler", "shuffle", "--seed", "-1"], "--seed must be a whole number >= 0, found -1"),
        (["--sampler", "shuffle", "--epoch", str(2**63)], "--epoch must be below 2^63"),
        (["--sampler", "shuffle", "--num-samples", "130"], "give either --embeddings FILE or"),
        (["--sampler", "shuffle", "--compare", "none.npz"], "--compare: not a batch plan: none.npz: cannot be read"),
        (["--sampler", "shuffle", "--out", "z.npz/plan.npz"], "z.npz: is a file, expected a folder"),
        (["--sampler", "shuffle", "--out", ""], "found an empty path, expected a folder"),
        ([], "the following arguments are required: --sampler"),
    ],
)
def test_plan_refuses_bad_options_in_one_line(
    words: list[str],
    expected: str,
    embeddings_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in error_line(capsys, "--embeddings", str(embeddings_path), "--out", "p", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["z.npz"]


def test_plan_refuses_missing_embeddings_and_plans_of_other_samples(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "p.npz")]
    assert "give either" in error_line(capsys, "--sampler", "shuffle", *out)
    few = ["--num-samples", "0", "--sampler", "shuffle", *out]
    assert "--num-samples must be a whole number >= 1, found 0" in error_line(capsys, *few)
    options = ["--num-samples", "50", "--sampler", "kmeans", *out]
    assert "sampler 'kmeans' plans from embeddings; give --embeddings FILE" in error_line(capsys, *options)
    Shuffle(batch_size=8).plan(N + 20).save(tmp_path / "larger.npz")
    options = [
        "--embeddings",
        str(embeddings_path),
        "--sampler",
        "shuffle",
        "--compare",
        str(tmp_path / "larger.npz"),
        *out,
    ]
    assert "--compare: a plan of other samples: shuffle: positions must be in 0..129" in error_line(capsys, *options)
    assert "--compare: not a batch plan: " in error_line(capsys, *options[:-4], "--compare", str(embeddings_path), *out)


Z1, Z2 = views()


def with_row(value: float) -> np.ndarray:
    z = Z1.copy()
    z[[7, 9], 1] = value
    return z


HOSTILE: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "NaN": ({"z1": with_row(np.nan), "z2": Z2}, "embeddings z1: 2 of 130 rows are not finite, first row 7"),
    "infinite": ({"z1": Z1, "z2": with_row(-np.inf)}, "embeddings z2: 2 of 130 rows are not finite, first row 7"),
    "integers": ({"z1": Z1.astype(int), "z2": Z2}, "z1 is int64, expected float16, float32, float64"),
    "complex": ({"z1": Z1, "z2": Z2.astype(complex)}, "z2 is complex128, expected"),
    "words": ({"z1": Z1.astype(str), "z2": Z2}, "z1 is <U32, expected"),
    "extended precision": ({"z1": Z1.astype(np.longdouble), "z2": Z2}, "expected float16, float32, float64"),
    "two dtypes": ({"z1": Z1, "z2": Z2.astype(np.float16)}, "must share one float dtype"),
    "one axis": ({"z1": Z1[0], "z2": Z2[0]}, "must be two (M, D) tensors, found (4,) and (4,)"),
    "no axis": ({"z1": Z1[0, 0], "z2": Z2[0, 0]}, "must be two (M, D) tensors, found () and ()"),
    "three axes": ({"z1": Z1[None], "z2": Z2[None]}, "must be two (M, D) tensors, found (1, 130, 4)"),
    "unequal": (
        {"z1": Z1, "z2": Z2[:-1]},
        "must be two (M, D) tensors, found (130, 4) and (129, 4); both sides must have one row",
    ),
    "no rows": ({"z1": Z1[:0], "z2": Z2[:0]}, "batch_size 32 is above the 0 samples"),
    "no columns": ({"z1": Z1[:, :0], "z2": Z2[:, :0]}, "at least one dimension, found (130, 0)"),
    "missing": ({"z1": Z1, "labels": LABELS}, "holds no array 'z2'; it holds labels, z1"),
    "misspelt": ({"z1": Z1, "z2": Z2, "label": LABELS}, "unknown array 'label'; did you mean 'labels'? known: "),
    "nothing": ({}, "holds no array 'z1'; it holds nothing"),
    "pickled": ({"z1": np.array([{}], dtype=object), "z2": Z2}, "array 'z1' holds Python objects, which are not read"),
    "pickled labels": (
        {"z1": Z1, "z2": Z2, "labels": np.array([{}] * N, dtype=object)},
        "array 'labels' holds Python objects",
    ),
    "too few labels": ({"z1": Z1, "z2": Z2, "labels": LABELS[1:]}, "labels are (129,), expected one for each of 130"),
    "labels in columns": ({"z1": Z1, "z2": Z2, "labels": np.eye(N)}, "labels are (130, 130), expected one for each"),
    "repeated": ({"z1": Z1, "z2": Z2, "indices": np.zeros(N, int)}, "must hold each of the 130 samples once"),
    "out of range": ({"z1": Z1, "z2": Z2, "indices": np.arange(N) + 1}, "must hold each of the 130 samples once"),
    "negative": ({"z1": Z1, "z2": Z2, "indices": np.arange(N) - 1}, "must hold each of the 130 samples once"),
    "beyond int64": (
        {"z1": Z1, "z2": Z2, "indices": np.arange(N, dtype=np.uint64) + np.uint64(2**63)},
        "must hold each of the 130 samples once",
    ),
    "broken indices": ({"z1": Z1, "z2": Z2, "indices": np.arange(N) + 0.5}, "indices are (130,) float64, expected one"),
    "too few indices": ({"z1": Z1, "z2": Z2, "indices": np.arange(3)}, "indices are (3,) int64, expected one integer"),
}


@pytest.mark.parametrize("sampler", ["shuffle", "kmeans"])
@pytest.mark.parametrize("case", HOSTILE)
def test_plan_refuses_invalid_arrays(
    case: str, sampler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, expected = HOSTILE[case]
    np.savez(tmp_path / "z.npz", **arrays)  # type: ignore[arg-type]
    options = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", sampler, "--out", str(tmp_path / "p")]
    line = error_line(capsys, *options)
    assert expected in line
    assert case == "no rows" or line.startswith(f"error: {tmp_path / 'z.npz'}: "), "the file is named"
    assert line.count("z.npz: ") <= 1


def valid_bytes(path: Path) -> bytes:
    np.savez(path, z1=Z1, z2=Z2)
    return path.read_bytes()


def single_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, Z1)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "cannot be read: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "empty": (lambda path: path.touch(), "not an .npz file"),
    "words": (lambda path: path.write_text("z1,z2\n1,2\n"), "not an .npz file"),
    "half": (lambda path: path.write_bytes(valid_bytes(path)[:2000]), "not an .npz file"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "not an .npz file"),
    "one array": (single_array, "holds a single array, expected an .npz file with z1, z2"),
    "a flipped bit": (
        lambda path: path.write_bytes(valid_bytes(path).replace(Z1.tobytes()[:8], b"\xff" * 8)),
        "array 'z1' is damaged",
    ),
    "a torn header": (
        lambda path: path.write_bytes(valid_bytes(path).replace(b"'descr'", b"'DESCR'")),
        "'z1' is damaged",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_plan_refuses_invalid_embedding_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, expected = FILES[case]
    write(tmp_path / "z.npz")
    options = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "shuffle", "--out", str(tmp_path / "p")]
    line = error_line(capsys, *options)
    assert line.count(f"{tmp_path / 'z.npz'}: ") == 1
    assert expected in line


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in UNUSUAL])
@pytest.mark.parametrize("batch_size", [32, N])
def test_plan_runs_every_sampler(
    name: str, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings_path = tmp_path / "double.npz"  # in float64 one batch of all samples equals the bound to the last digits
    np.savez(embeddings_path, z1=Z1.astype(np.float64), z2=Z2.astype(np.float64))
    options = ["--embeddings", str(embeddings_path), "--sampler", name, "--batch-size", str(batch_size), "--json"]
    parameters = inspect.signature(SAMPLERS[name], eval_str=True).parameters
    unlimited = [key for key in ("k", "pool") if key in parameters and parameters[key].annotation == int | None]
    options += [option for key in unlimited for option in ("--set", f"{key}=null")]
    assert plan(*options, "--out", str(tmp_path / "plan.npz")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["batches"] == N // batch_size
    assert 0 < printed["loss_of_bound"] <= 1 + 1e-9


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_read_embeddings_orders_rows_and_labels_of_any_precision(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = np.random.default_rng(1).permutation(N)
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])[LABELS]
    arrays = {"z1": Z1[order].astype(dtype), "z2": Z2[order].astype(dtype), "labels": names[order]}
    np.savez(tmp_path / "z.npz", **arrays, indices=order.astype(np.uint16))
    (tmp_path / "z.npz").chmod(0o444)
    embeddings, labels = read_embeddings(tmp_path / "z.npz")
    assert embeddings.z1.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    assert torch.equal(embeddings.z1, torch.from_numpy(Z1.astype(dtype).astype(embeddings.z1.numpy().dtype)))
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()
    options = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "{name: kmeans, pool: null}", "--json"]
    assert plan(*options, "--out", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["same_class_of_random"] == pytest.approx(25 / 129)


def test_read_embeddings_refuses_an_array_larger_than_memory(tmp_path: Path) -> None:
    """The header of an array may name any shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 4)})
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("z1.npy", header.getvalue())
        archive.writestr("z2.npy", header.getvalue())
    with pytest.raises(ConfigError, match="array 'z1' is larger than the memory of this machine"):
        read_embeddings(tmp_path / "z.npz")


def test_plan_help_imports_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from mbcl.cli import main\n"
        "try:\n    main(['plan', '--help'])\n"
        "except SystemExit as exited:\n    assert exited.code == 0\n"
        "loaded = [name for name in ('torch', 'numpy', 'numba', 'pydantic', 'rich') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert result.returncode == 0, result.stderr
    assert "--embeddings" in result.stdout


@pytest.mark.parametrize("option", ["--embeddings", "--compare"])
def test_plan_never_overwrites_its_input(
    option: str, embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.npz"
    assert plan("--embeddings", str(embeddings_path), "--sampler", "shuffle", "--out", str(other)) == 0
    source = embeddings_path if option == "--embeddings" else other
    before = source.read_bytes()
    options = ["--embeddings", str(embeddings_path), "--compare", str(other), "--sampler", "shuffle"]
    assert plan(*options, "--overwrite", "--out", str(source)) == 2
    assert f"is what {option} names" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_plan_reports_a_file_name_that_is_too_long(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / ("n" * 300 + ".npz")
    assert plan("--embeddings", str(embeddings_path), "--sampler", "shuffle", "--out", str(name)) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.fixture(scope="module")
def valid_file() -> bytes:
    stream = io.BytesIO()
    z1, z2 = views()
    np.savez_compressed(stream, z1=z1[:20], z2=z2[:20])
    return stream.getvalue()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_arrays_raises_only_config_errors_for_damaged_files(
    data: st.DataObject, valid_file: bytes, tmp_path: Path
) -> None:
    """Any byte may be damaged, also in the directory of the archive."""
    damaged = bytearray(valid_file)
    near_end = data.draw(st.booleans())
    low = len(valid_file) - 200 if near_end else 0
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(low, len(valid_file) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ConfigError):
        read_arrays(path, ("z1", "z2"))


def test_plan_names_invalid_indices_labels_and_temperatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z1, z2 = views()
    shifted, unlabelled = tmp_path / "shifted.npz", tmp_path / "unlabelled.npz"
    np.savez(shifted, z1=z1, z2=z2, indices=np.arange(N) - 1)
    np.savez(unlabelled, z1=z1, z2=z2, labels=np.where(np.arange(N) < 3, np.nan, 1.0))
    for options, message in (
        (
            ["--embeddings", str(shifted)],
            f"found {N} rows of {N} samples, at positions -1 to {N - 2}; allowed",
        ),
        (["--embeddings", str(unlabelled)], f"labels: 3 of {N} are not finite, the first in row 0"),
        (["--num-samples", "100", "--temperature", "0.2"], "--temperature: losses are measured on embeddings"),
        (["--num-samples", "100", "--set", "k=0"], "sampler 'osgd': k must be a whole number >= 1, found 0"),
    ):
        sampler = "osgd" if "k=0" in options else "shuffle"
        assert plan(*options, "--sampler", sampler, "--batch-size", "10", "--out", str(tmp_path / "p.npz")) == 2
        assert message in capsys.readouterr().err


def test_plan_prints_conflicts_with_their_share(
    embeddings_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sampler", "kmeans", "--set", "skip=129", "--batch-size", "10", "--out", str(tmp_path / "p.npz")]
    with pytest.warns(UserWarning, match="neighbours must share batches"):
        assert plan("--embeddings", str(embeddings_path), *options) == 0
    # All others are neighbours, so all pairs of 13 batches are conflicts.
    pairs = f"{13 * 10 * 9} pairs"
    said = (
        f"{pairs} of a sample and one that is no negative of it could not be kept apart, 100% of the {pairs} that share"
    )
    assert said in capsys.readouterr().out


def test_plan_calls_a_sampled_bound_an_estimate() -> None:
    """Half of the estimates lie below the bound, so a plan may exceed them."""
    exact = {"loss_of_bound": 0.762, "bound": 2.937, "bound_anchors": 3584, "bound_standard_error": 0.0}
    limit = "no plan that visits the same samples as often, B at a time, can exceed"
    assert _bound(exact) == f"loss is 76.2% of 2.937, which {limit}"
    sampled = exact | {"bound_anchors": 512, "bound_standard_error": 0.0123}
    assert _bound(sampled) == f"loss is 76.2% of 2.937 ± 0.012, an estimate from 512 anchors of what {limit}"


@pytest.mark.parametrize(("name", "library"), [("z.pt", "torch"), ("z.safetensors", "safetensors")])
def test_plan_says_how_a_file_of_another_library_is_converted(name, library, tmp_path, monkeypatch, capsys):
    """The printed lines make the file that is read."""
    monkeypatch.chdir(tmp_path)
    views = {key: torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) for key in ("z1", "z2")}
    (torch.save if library == "torch" else safetensors.torch.save_file)(views, name)
    assert main(["plan", "--embeddings", name, "--sampler", "kmeans", "--out", "plan.npz"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {name}: a file of {library}, which is not read; write it as .npz first: ")
    exec(
        err.partition("first: ")[2].replace("FILE", repr(name)), {"torch": torch, "safetensors": safetensors, "np": np}
    )
    assert np.array_equal(np.load("embeddings.npz")["z1"], views["z1"].numpy())
