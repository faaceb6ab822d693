"""``mbcl bench planner`` at toy size: every figure of its record against an independent computation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mbcl
from mbcl.bench.embeddings import MAKERS, mixture
from mbcl.bench.growth import exponent, grow
from mbcl.bench.measure import random_batches, timed_plan, worth
from mbcl.bench.pools import geometric_means, pool_rows
from mbcl.bench.published import plan_published
from mbcl.cli import main
from mbcl.config.sampler_spec import parse_spec
from mbcl.errors import ConfigError
from mbcl.samplers import OSGD, Spectral

TOY = ["--data-sets", "mix_1", "digits", "--pool", "128", "--pools", "1", "--seeds", "1"]
GROWTH = {"batch_size": 32, "pool": 128, "temperature": 0.1, "device": "cpu"}
SAMPLERS = ["spectral:k=4", "osgd:k=4,q=2", "shuffle"]


def nt_xent_by_hand(z1: np.ndarray, z2: np.ndarray) -> float:
    """Equation 1 of arXiv 2002.05709, anchor by anchor, at temperature 0.1."""
    h = np.concatenate([z1, z2]).astype(np.float64)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    num = len(z1)
    losses = []
    for anchor in range(2 * num):
        scores = h @ h[anchor] / 0.1
        others = [scores[c] for c in range(2 * num) if c != anchor]
        losses.append(np.log(np.exp(others).sum()) - scores[(anchor + num) % (2 * num)])
    return float(np.mean(losses))


def clip_by_hand(z1: np.ndarray, z2: np.ndarray) -> float:
    u, v = (z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True) for z in (z1, z2))
    s = u @ v.T / 0.1
    return float(np.mean([np.log(np.exp(t).sum(1)) - t.diagonal() for t in (s, s.T)]) * 2)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    assert main(["bench", "planner", *TOY, "--samplers", *SAMPLERS, "--whole", "256", "--out", str(out)]) == 0
    return json.loads((out / "planner.json").read_text())


def test_bench_planner_records_settings_and_environment(record):
    assert record["settings"]["samplers"] == SAMPLERS
    assert record["settings"]["batch_size"] == 32
    assert {"processor", "python", "torch", "numpy", "scipy", "scikit-learn", "numba"} <= set(record["environment"])
    assert set(record["warm_up_seconds"]) == {"published", *SAMPLERS}
    expected = [(name, method) for name in ("mix_1", "digits") for method in ("random", "published", *SAMPLERS)]
    assert [(row["data_set"], row["method"]) for row in record["pools"]] == expected


@pytest.mark.parametrize("name", ["mix_1", "digits"])
def test_bench_planner_records_losses_and_ratios_of_the_plans(record, name):
    data = MAKERS[name](128, None, 0)
    rows = pool_rows(len(data), 128, 1, seed=0)[0]
    z1, z2 = data.embeddings.z1[rows].numpy(), data.embeddings.z2[rows].numpy()
    labels = data.labels[rows].numpy()
    published, _ = plan_published(z1, z2, batch_size=32, seed=0)
    pool = mbcl.Embeddings(torch.from_numpy(z1), torch.from_numpy(z2))
    plans = {
        "published": published,
        "spectral:k=4": Spectral(batch_size=32, k=4).plan(128, pool, seed=0).batches.numpy(),
        "osgd:k=4,q=2": OSGD(batch_size=32, k=4, q=2).plan(128, pool, seed=0).batches.numpy(),
        "random": random_batches(128, 32, 8, 0).numpy(),
    }
    rows_by_method = {row["method"]: row for row in record["pools"] if row["data_set"] == name}
    ntxent, clip = (
        {method: np.mean([loss(z1[b], z2[b]) for b in batches]) for method, batches in plans.items()}
        for loss in (nt_xent_by_hand, clip_by_hand)
    )
    for method, batches in plans.items():
        row = rows_by_method[method]
        assert row["ntxent"] == pytest.approx(ntxent[method], rel=1e-4)
        assert row["ntxent_ratio"] == pytest.approx(ntxent[method] / ntxent["published"], rel=1e-4)
        assert row["ntxent_lift"] == pytest.approx(ntxent[method] / ntxent["random"], rel=1e-4)
        assert row["clip_ratio"] == pytest.approx(clip[method] / clip["published"], rel=1e-4)
        assert row["clip_lift"] == pytest.approx(clip[method] / clip["random"], rel=1e-4)
        pairs = [labels[i] == labels[j] for b in batches for i in b for j in b if i != j]
        assert row["same_class"] == pytest.approx(np.mean(pairs))
        assert row["coverage"] == len(np.unique(batches)) / 128
    assert rows_by_method["osgd:k=4,q=2"]["coverage"] == 0.5


def test_bench_planner_speedup_is_relative_to_the_baseline(record):
    for name in ("mix_1", "digits"):
        rows = {row["method"]: row for row in record["pools"] if row["data_set"] == name}
        base = rows["published"]
        assert (base["speedup"], base["ntxent_ratio"], base["clip_ratio"]) == (1.0, 1.0, 1.0)
        assert sum(base["stages"].values()) == pytest.approx(base["seconds"])
        for method in SAMPLERS:
            assert rows[method]["speedup"] == pytest.approx(base["seconds"] / rows[method]["seconds"])
            assert rows[method]["seconds"] == pytest.approx(np.mean(rows[method]["each"]["seconds"]))
    for mean in record["geometric_means"]:
        both = [row["clip_ratio"] for row in record["pools"] if row["method"] == mean["method"]]
        assert mean["clip_ratio"] == pytest.approx(math.sqrt(both[0] * both[1]))
        assert mean["least_clip_ratio"] == min(both)


def test_bench_planner_records_rows_of_whole_data_sets(record):
    for name in ("mix_1", "digits"):
        data = MAKERS[name](256, None, 0)
        z1, z2 = (z[:256].numpy() for z in (data.embeddings.z1, data.embeddings.z2))
        rows = {row["method"]: row for row in record["whole"] if row["data_set"] == name}
        pool = pool_rows(256, 128, 1, 0)[0].numpy()
        planned, _ = plan_published(z1[pool], z2[pool], batch_size=32, seed=0)
        published = np.mean([nt_xent_by_hand(z1[pool][b], z2[pool][b]) for b in planned])
        assert rows["published"]["ntxent"] == pytest.approx(published, rel=1e-4)
        assert (rows["published"]["pools"], rows["published"]["pools_planned"]) == (2, 1)
        whole = mbcl.Embeddings(torch.from_numpy(z1), torch.from_numpy(z2))
        batches = Spectral(batch_size=32, k=4).plan(256, whole, seed=0).batches.numpy()
        mean = np.mean([nt_xent_by_hand(z1[b], z2[b]) for b in batches])
        assert rows["spectral:k=4"]["ntxent_ratio"] == pytest.approx(mean / published, rel=1e-4)
        assert (rows["spectral:k=4"]["coverage"], rows["osgd:k=4,q=2"]["coverage"]) == (1.0, 0.5)
        assert "first_seconds" in rows["shuffle"]


def test_grow_measures_time_and_memory_in_another_process():
    spec = parse_spec("spectral:k=50")
    (row,) = grow([spec], [1600], **GROWTH)
    assert row["exponent"] is None
    data = mixture(1, 1600, 0)
    plan = Spectral(batch_size=32, k=50).plan(1600, data.embeddings, seed=0)
    chance = worth(random_batches(1600, 32, 1, 0), data, 0.1)
    assert row["ntxent_lift"] == pytest.approx(worth(plan.batches, data, 0.1).ntxent / chance.ntxent, rel=1e-6)
    assert row["microseconds_a_sample"] == pytest.approx(row["seconds"] / 1600 * 1e6)
    assert row["extra_of_inputs"] == pytest.approx(row["extra_bytes"] / (2 * 1600 * 128 * 4))
    # One affinity of 1,600 samples is 10 MB in float32, and the plan holds two; the libraries are not counted.
    assert 20e6 < row["extra_bytes"] < 200e6


def test_exponent_and_geometric_means_equal_hand_values():
    assert exponent({100: 1.0, 10_000: 1000.0, 1000: 5.0}) == pytest.approx(1.5)
    assert exponent({100: 1.0}) is None
    rows = [{"method": "a", "speedup": s, "ntxent_ratio": 1.0, "clip_ratio": 1.0} for s in (2.0, 8.0)]
    assert geometric_means(rows)[0] | {"speedup": 4.0, "least_speedup": 2.0} == geometric_means(rows)[0]


def test_pool_rows_are_disjoint_random_and_full():
    pools = pool_rows(1797, 128, 100, seed=0)
    assert len(pools) == 14
    assert len(torch.unique(torch.cat(pools))) == 14 * 128
    assert not torch.equal(pools[0], pool_rows(1797, 128, 100, seed=1)[0])


def test_specs_of_groups_plan_with_ids():
    """The same plan as by the arguments; the classes of mix_1 are then in one batch each, or never meet."""
    data = mixture(1.0, 640, 0)
    labels = data.labels.numpy()
    spec = parse_spec("kmeans:pool=320,apart=4,together=labels")
    assert (spec.parameters, spec.groups) == ({"pool": 320}, {"apart": 4, "together": "labels"})
    assert {key: ids.tolist() for key, ids in spec.ids(labels[:6]).items()} == {
        "apart": [0, 0, 0, 0, 1, 1],
        "together": labels[:6].tolist(),
    }
    spec = parse_spec("kmeans:pool=320,apart=labels")
    plan, _ = timed_plan(spec.whole(32), data, seed=1, spec=spec)
    assert plan.digest == spec.whole(32).plan(640, data.embeddings, seed=1, apart=labels).digest
    assert worth(plan.batches, data, 0.1).same_class == 0
    with pytest.raises(ConfigError, match="--samplers kmeans:apart=classes: apart must be a whole number"):
        parse_spec("kmeans:apart=classes")


def test_parse_spec_resolves_names_and_parameters():
    spec = parse_spec("osgd_kb_loose:k=20,criterion=min,mix=0.5,temperature=1e-1")
    assert (spec.name, spec.parameters) == ("osgd", {"k": 20, "criterion": "min", "mix": 0.5, "temperature": 0.1})
    assert parse_spec("sc_even").in_pool(32, 320).k == 10
    assert parse_spec("spectral:k=5").in_pool(32, 320).k == 5
    assert parse_spec("spectral").whole(32).k == 40
    assert parse_spec("kmeans").whole(32).pool is None
    assert parse_spec("chain").whole(32).pool == 1280, "the time of one pool grows as its square"
    assert parse_spec("chain:pool=null").whole(32).pool is None
    assert (parse_spec("osgd").in_pool(32, 640).k, parse_spec("osgd").in_pool(32, 640).q) == (20, 2)
    with pytest.raises(ConfigError, match="unknown parameter 'kk'; did you mean 'k'"):
        parse_spec("spectral:kk=5").in_pool(32, 320)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data-sets", "mix_3"], "unknown 'mix_3'; did you mean 'mix_"),
        (["--data-sets", "digits", "digits"], "--data-sets: each once, found digits digits"),
        (["--samplers", "spectrul"], "--samplers spectrul: unknown sampler 'spectrul'; did you mean 'spectral'"),
        (["--samplers", "spectral:k"], "expected NAME or NAME:KEY=VALUE,KEY=VALUE, each key once, found 'k'"),
        (["--samplers", "spectral:"], "found ''"),
        (["--samplers", "spectral:k=2,k=3"], "each key once, found 'k=3'"),
        (["--samplers", "spectral:k=-1"], "k must be"),
        (["--samplers", "osgd:k=9,q=1"], "k may be at most 4"),
        (["--samplers", "osgd", "--whole", "256"], "osgd': k * batch_size = 1500"),
        (["--pool", "100"], "--pool must be a multiple of the batch size 32, two batches at least, found 100"),
        (["--pool", "32"], "two batches at least, found 32"),
        (["--seeds", "0"], "--seeds must be"),
        (["--pools", "0"], "--pools must be"),
        (["--batch-size", "1"], "--batch-size must be"),
        (["--temperature", "0"], "temperature must be"),
        (["--whole", "0"], "--whole must be at least --pool, 128, found 0"),
        (["--growth", "128", "64"], "--growth must be at least --pool, 128, found 64"),
        (["--growth", "many"], "invalid int value: 'many'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--data-sets", "fm_pca", "--data-dir", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_bench_planner_reports_bad_arguments_in_one_line(arguments, expected, capsys):
    try:
        code = main(["bench", "planner", *TOY, "--samplers", "spectral", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_bench_planner_skips_a_data_set_without_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mbcl.data.datasets.fashion_mnist.DEBIAN_DIR", tmp_path)  # a machine without Debian's package
    assert main(["bench", "planner", *TOY, "--samplers", "shuffle", "--data-sets", "fm_pca", "digits"]) == 0
    out = capsys.readouterr().out
    assert "fm_pca left out: --data-dir must name the folder" in out
    assert any(line.split()[:2] == ["digits", "shuffle"] for line in out.splitlines())
    assert main(["bench", "planner", *TOY, "--samplers", "shuffle", "--data-sets", "fm_pca"]) == 2
    assert "none of fm_pca can be measured" in capsys.readouterr().err


def test_bench_planner_skips_too_small_data_sets(capsys):
    arguments = ["--data-sets", "digits", "--pool", "2048", "--samplers", "shuffle"]
    assert main(["bench", "planner", *arguments]) == 2
    assert "digits left out: it has 1797 samples, fewer than a pool of 2048" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bench_planner_reports_a_missing_gpu_in_one_line(capsys):
    assert main(["bench", "planner", *TOY, "--samplers", "shuffle", "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
