"""``mbcl plan`` as a user meets it: the plan's file, what is printed, one line for every mistake."""

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
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbcl.cli import main
from mbcl.errors import ConfigError
from mbcl.io.npz import read_arrays
from mbcl.plan import BatchPlan, Embeddings
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
def held(tmp_path: Path) -> Path:
    z1, z2 = views()
    np.savez(tmp_path / "z.npz", z1=z1, z2=z2, labels=LABELS)
    return tmp_path / "z.npz"


def plan(*words: str) -> int:
    try:
        return main(["plan", *words])
    except SystemExit as exited:
        return int(exited.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that says why not."""
    assert plan(*words) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    return found.err


def test_the_written_plan_is_the_samplers(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "a.npz"
    words = ["--embeddings", str(held), "--sampler", "{name: sc_even, k: 2}", "--set", "mix=0.25"]
    assert plan(*words, "--batch-size", "16", "--seed", "3", "--epoch", "4", "--round", "1", "--out", str(out)) == 0
    z1, z2 = (torch.from_numpy(z) for z in views())
    sampler = build("spectral", batch_size=16, k=2, mix=0.25)
    wanted = sampler.plan(N, Embeddings(z1, z2), seed=3, epoch=4, round=1)
    found = BatchPlan.load(out)
    assert (found.digest, found.sampler, found.seed, found.epoch, found.round) == (wanted.digest, "spectral", 3, 4, 1)
    assert [path.name for path in out.parent.iterdir()] == ["a.npz"]
    text = capsys.readouterr().out
    for words_of_it in (
        "8 of 16, 98.4615% of 130 samples",
        wanted.digest,
        "times random batches",
        "same class",
        str(out),
    ):
        assert words_of_it in text


def test_what_is_printed_is_what_the_library_measures(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--embeddings", str(held), "--batch-size", "10", "--seed", "2"]
    assert plan(*common, "--sampler", "shuffle", "--out", str(tmp_path / "other.npz")) == 0
    capsys.readouterr()
    settings = ["--set", "skip=1", "--set", "pool=50"]
    compare = ["--compare", str(tmp_path / "other.npz"), "--check", "--json", "--temperature", "0.4"]
    assert plan(*common, "--sampler", "refined", *settings, *compare, "--out", str(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    z = Embeddings(*(torch.from_numpy(view) for view in views()))
    made, other = BatchPlan.load(tmp_path / "plan.npz"), BatchPlan.load(tmp_path / "other.npz")
    nt_xent = quality(made, z, temperature=0.4, seed=2)
    clip = quality(made, z, temperature=0.4, seed=2, loss="clip")
    bound = upper_bound(made, z, temperature=0.4)
    shared, same = overlap(made, other, N), same_class_share(made, torch.from_numpy(LABELS))
    again = build("refined", batch_size=10, skip=1, pool=50).plan(N, z, seed=2)
    assert found.pop("seconds") > 0
    assert found == {
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
        "conflicts": again.conflicts,
        "digest": again.digest,
        "plan": str(tmp_path / "plan.npz"),
    }


@pytest.mark.parametrize(("setting", "expected"), [([], 0.2), (["--temperature", "0.5"], 0.5)])
def test_the_temperature_is_the_samplers_unless_given(
    setting: list[str], expected: float, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--embeddings", str(held), "--sampler", "{name: spectral, k: 2, temperature: 0.2}", "--json"]
    assert plan(*words, *setting, "--out", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == expected


def test_without_embeddings_nothing_is_said_about_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num-samples", "50", "--sampler", "s", "--batch-size", "8", "--out", str(tmp_path)]
    assert plan(*words) == 0
    text = capsys.readouterr().out
    assert "6 of 8, 96.0000% of 50 samples" in text
    assert "loss" not in text
    assert BatchPlan.load(tmp_path / "plan.npz").digest == Shuffle(batch_size=8).plan(50).digest


def test_no_loss_at_all_is_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = np.eye(8, dtype=np.float32)
    np.savez(tmp_path / "z.npz", z1=z, z2=z)
    words = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "shuffle", "--batch-size", "4", "--json"]
    assert plan(*words, "--temperature", "0.001", "--out", str(tmp_path)) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert (found["loss"], found["lift"], found["loss_of_bound"]) == (0.0, None, None)
    assert "NaN" not in text


def test_a_plan_is_replaced_only_on_demand(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--embeddings", str(held), "--sampler", "shuffle"]
    out = tmp_path / "plan.npz"
    assert plan(*words, "--out", str(out)) == 0
    before = out.read_bytes()
    capsys.readouterr()
    for target in (str(out), str(tmp_path), f"{tmp_path}/"):
        assert f"{out}: is there already; add --overwrite" in refused(capsys, *words, "--seed", "1", "--out", target)
    assert out.read_bytes() == before
    assert plan(*words, "--seed", "1", "--overwrite", "--out", str(out)) == 0
    assert BatchPlan.load(out).seed == 1


def test_relative_names(held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target, written in (("b.npz", "b.npz"), ("sub/c.npz", "sub/c.npz"), ("d", "d/plan.npz"), (".", "plan.npz")):
        assert plan("--embeddings", held.name, "--sampler", "shuffle", "--out", target) == 0
        assert BatchPlan.load(tmp_path / written).batches.shape == (4, 32)


def test_a_sampler_that_is_not_reproducible_is_caught(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Restless(Shuffle):
        name = "restless"

        def stream(self, epoch: int, round: int) -> tuple[int, int]:
            calls.append(epoch)
            return len(calls), round

    monkeypatch.setitem(SAMPLERS._parts, "restless", Restless)
    words = ["--embeddings", str(held), "--sampler", "restless", "--check", "--out", str(tmp_path / "p.npz")]
    assert "planned twice, the digests are " in refused(capsys, *words, code=1)
    assert not (tmp_path / "p.npz").exists()


def test_a_sampler_that_breaks_its_promise_is_caught(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Shuffle):
        name = "forgetful"

        def plan(self, *arguments: object, **keywords: object) -> BatchPlan:
            whole = super().plan(*arguments, **keywords)  # type: ignore[arg-type]
            return BatchPlan(whole.batches[1:], self.name)

    monkeypatch.setitem(SAMPLERS._parts, "forgetful", Forgetful)
    words = ["--embeddings", str(held), "--sampler", "forgetful", "--out", str(tmp_path / "p.npz")]
    assert "forgetful: (4, 32) batches were promised, found (3, 32)" in refused(capsys, *words, code=1)


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
def test_mistakes_of_the_command_line(
    words: list[str],
    expected: str,
    held: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "--embeddings", str(held), "--out", "p", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["z.npz"]


def test_embeddings_or_their_number_and_plans_of_others(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "p.npz")]
    assert "give either" in refused(capsys, "--sampler", "shuffle", *out)
    few = ["--num-samples", "0", "--sampler", "shuffle", *out]
    assert "--num-samples must be a whole number >= 1, found 0" in refused(capsys, *few)
    words = ["--num-samples", "50", "--sampler", "kmeans", *out]
    assert "sampler 'kmeans' plans from embeddings; give --embeddings FILE" in refused(capsys, *words)
    Shuffle(batch_size=8).plan(N + 20).save(tmp_path / "larger.npz")
    words = ["--embeddings", str(held), "--sampler", "shuffle", "--compare", str(tmp_path / "larger.npz"), *out]
    assert "--compare: a plan of other samples: shuffle: positions must be in 0..129" in refused(capsys, *words)
    assert "--compare: not a batch plan: " in refused(capsys, *words[:-4], "--compare", str(held), *out)


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
    "unequal": ({"z1": Z1, "z2": Z2[:-1]}, "must be two (M, D) tensors, found (130, 4) and (129, 4)"),
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
def test_arrays_that_are_no_embeddings(
    case: str, sampler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, expected = HOSTILE[case]
    np.savez(tmp_path / "z.npz", **arrays)  # type: ignore[arg-type]
    words = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", sampler, "--out", str(tmp_path / "p")]
    line = refused(capsys, *words)
    assert expected in line
    assert case == "no rows" or line.startswith(f"error: {tmp_path / 'z.npz'}: "), "the file is named"
    assert line.count("z.npz: ") <= 1


def whole(path: Path) -> bytes:
    np.savez(path, z1=Z1, z2=Z2)
    return path.read_bytes()


def bare(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, Z1)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "cannot be read: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "empty": (lambda path: path.touch(), "not an .npz file"),
    "words": (lambda path: path.write_text("z1,z2\n1,2\n"), "not an .npz file"),
    "half": (lambda path: path.write_bytes(whole(path)[:2000]), "not an .npz file"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "not an .npz file"),
    "one array": (bare, "holds a single array, expected an .npz file with z1, z2"),
    "a flipped bit": (
        lambda path: path.write_bytes(whole(path).replace(Z1.tobytes()[:8], b"\xff" * 8)),
        "array 'z1' is damaged",
    ),
    "a torn header": (lambda path: path.write_bytes(whole(path).replace(b"'descr'", b"'DESCR'")), "'z1' is damaged"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_embeddings(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, expected = FILES[case]
    write(tmp_path / "z.npz")
    words = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "shuffle", "--out", str(tmp_path / "p")]
    line = refused(capsys, *words)
    assert line.count(f"{tmp_path / 'z.npz'}: ") == 1
    assert expected in line


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in UNUSUAL])
@pytest.mark.parametrize("batch_size", [32, N])
def test_every_sampler_by_name(name: str, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = tmp_path / "double.npz"  # in float64 one batch of all samples reaches the bound to its last digits
    np.savez(held, z1=Z1.astype(np.float64), z2=Z2.astype(np.float64))
    words = ["--embeddings", str(held), "--sampler", name, "--batch-size", str(batch_size), "--json"]
    known = inspect.signature(SAMPLERS[name], eval_str=True).parameters
    whole = [key for key in ("k", "pool") if key in known and known[key].annotation == int | None]
    words += [word for key in whole for word in ("--set", f"{key}=null")]
    assert plan(*words, "--out", str(tmp_path / "plan.npz")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batches"] == N // batch_size
    assert 0 < found["loss_of_bound"] <= 1 + 1e-9


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_rows_and_labels_in_any_order_and_of_any_precision(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = np.random.default_rng(1).permutation(N)
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])[LABELS]
    arrays = {"z1": Z1[order].astype(dtype), "z2": Z2[order].astype(dtype), "labels": names[order]}
    np.savez(tmp_path / "z.npz", **arrays, indices=order.astype(np.uint16))
    (tmp_path / "z.npz").chmod(0o444)
    found, labels = read_embeddings(tmp_path / "z.npz")
    assert found.z1.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    assert torch.equal(found.z1, torch.from_numpy(Z1.astype(dtype).astype(found.z1.numpy().dtype)))
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()
    words = ["--embeddings", str(tmp_path / "z.npz"), "--sampler", "{name: kmeans, pool: null}", "--json"]
    assert plan(*words, "--out", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["same_class_of_random"] == pytest.approx(25 / 129)


def test_an_array_that_no_memory_holds(tmp_path: Path) -> None:
    """A header may promise anything."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 4)})
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("z1.npy", header.getvalue())
        archive.writestr("z2.npy", header.getvalue())
    with pytest.raises(ConfigError, match="array 'z1' is larger than the memory of this machine"):
        read_embeddings(tmp_path / "z.npz")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mbcl.cli import main\n"
        "try:\n    main(['plan', '--help'])\n"
        "except SystemExit as exited:\n    assert exited.code == 0\n"
        "loaded = [name for name in ('torch', 'numpy', 'numba', 'pydantic', 'rich') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert found.returncode == 0, found.stderr
    assert "--embeddings" in found.stdout


@pytest.mark.parametrize("option", ["--embeddings", "--compare"])
def test_what_is_read_is_never_replaced(
    option: str, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.npz"
    assert plan("--embeddings", str(held), "--sampler", "shuffle", "--out", str(other)) == 0
    source = held if option == "--embeddings" else other
    before = source.read_bytes()
    words = ["--embeddings", str(held), "--compare", str(other), "--sampler", "shuffle"]
    assert plan(*words, "--overwrite", "--out", str(source)) == 2
    assert f"is what {option} names" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_plan_that_cannot_be_written(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / ("n" * 300 + ".npz")
    assert plan("--embeddings", str(held), "--sampler", "shuffle", "--out", str(name)) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stored() -> bytes:
    stream = io.BytesIO()
    z1, z2 = views()
    np.savez_compressed(stream, z1=z1[:20], z2=z2[:20])
    return stream.getvalue()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_one_line(data: st.DataObject, stored: bytes, tmp_path: Path) -> None:
    """Any byte of it, in the archive's directory too."""
    damaged = bytearray(stored)
    near_end = data.draw(st.booleans())
    low = len(stored) - 200 if near_end else 0
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(low, len(stored) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ConfigError):
        read_arrays(path, ("z1", "z2"))


def test_indices_labels_and_temperatures_that_mean_nothing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    z1, z2 = views()
    shifted, unlabelled = tmp_path / "shifted.npz", tmp_path / "unlabelled.npz"
    np.savez(shifted, z1=z1, z2=z2, indices=np.arange(N) - 1)
    np.savez(unlabelled, z1=z1, z2=z2, labels=np.where(np.arange(N) < 3, np.nan, 1.0))
    for words, said in (
        (
            ["--embeddings", str(shifted)],
            f"found {N} rows of {N} samples, at positions -1 to {N - 2}; allowed",
        ),
        (["--embeddings", str(unlabelled)], f"labels: 3 of {N} are not finite, the first in row 0"),
        (["--num-samples", "100", "--temperature", "0.2"], "--temperature: losses are measured on embeddings"),
        (["--num-samples", "100", "--set", "k=0"], "sampler 'osgd': k must be a whole number >= 1, found 0"),
    ):
        sampler = "osgd" if "k=0" in words else "shuffle"
        assert plan(*words, "--sampler", sampler, "--batch-size", "10", "--out", str(tmp_path / "p.npz")) == 2
        assert said in capsys.readouterr().err


def test_conflicts_are_told_with_their_share(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sampler", "kmeans", "--set", "skip=129", "--batch-size", "10", "--out", str(tmp_path / "p.npz")]
    with pytest.warns(UserWarning, match="neighbours must share batches"):
        assert plan("--embeddings", str(held), *words) == 0
    # All others are neighbours, so all pairs of 13 batches are conflicts.
    assert f"{13 * 10 * 9} pairs of a sample and one of its nearest could not be kept apart, 1 of all" in (
        capsys.readouterr().out
    )
