"""The published studies: their tables follow from their rows, and the document of results from the folders."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mbcl.cli import main

from .blocks import ROOT

pandas = pytest.importorskip("pandas")

STUDIES = sorted(path for path in (ROOT / "studies").iterdir() if path.is_dir())
MAX_BYTES = 20e6
COMMAND = ["report", *(f"studies/{path.name}" for path in STUDIES), "--markdown"]
# Comparisons of the text that are in no table: the study, and a metric other than the headline; settings with signs;
# the mean and 95 % t interval of their sum.
EXPLORATORY = [
    (
        "batch_size_code_docs",
        {
            "spectral (k=4), batch_size=8": 1,
            "shuffle, batch_size=8": -1,
            "spectral (k=4), batch_size=32": -1,
            "shuffle, batch_size=32": 1,
        },
        "0.0031 [0.0018, 0.0045]",
    ),
    (
        "batch_size_digits",
        {
            "spectral (k=4), batch_size=8": 1,
            "shuffle, batch_size=8": -1,
            "spectral (k=4), batch_size=32": -1,
            "shuffle, batch_size=32": 1,
        },
        "0.0278 [0.0179, 0.0378]",
    ),
    (
        "batch_size_code_docs",
        {"spectral (k=4), batch_size=8": 1, "shuffle, batch_size=16": -1},
        "0.0034 [0.0022, 0.0046]",
    ),
    (
        "batch_size_code_docs",
        {"spectral (k=4), batch_size=16": 1, "shuffle, batch_size=32": -1},
        "0.0021 [0.0013, 0.0029]",
    ),
    (
        "batch_size_digits",
        {"shuffle, batch_size=16": 1, "spectral (k=4), batch_size=8": -1},
        "0.0412 [0.0304, 0.0520]",
    ),
    (
        "batch_size_digits",
        {"shuffle, batch_size=32": 1, "spectral (k=4), batch_size=16": -1},
        "0.0290 [0.0211, 0.0370]",
    ),
    (
        "batch_size_code_docs",
        {"spectral (k=4), batch_size=32": 1, "shuffle, batch_size=64": -1},
        "0.0045 [0.0036, 0.0054]",
    ),
    (
        "batch_size_code_docs",
        {"shuffle, batch_size=128": 1, "spectral (k=4), batch_size=64": -1},
        "0.0015 [0.0004, 0.0027]",
    ),
    (
        "batch_size_digits",
        {"shuffle, batch_size=64": 1, "spectral (k=4), batch_size=32": -1},
        "0.0133 [0.0046, 0.0221]",
    ),
    (
        "batch_size_digits",
        {"shuffle, batch_size=128": 1, "spectral (k=4), batch_size=64": -1},
        "0.0040 [−0.0019, 0.0098]",
    ),
    (
        "hardness_code_docs",
        {
            "refined (pool=64, temperature=0.2), clip (temperature=0.2)": 1,
            "shuffle, clip (temperature=0.1)": -1,
        },
        "0.0079 [0.0070, 0.0089]",
    ),
    (
        "hardness_code_docs",
        {
            "refined (pool=64, temperature=0.2), clip (temperature=0.2)": 1,
            "shuffle, clip (temperature=0.1), epochs=8": -1,
        },
        "0.0052 [0.0044, 0.0060]",
    ),
    (
        "hardness_fashion_mnist",
        {
            "refined (pool=128, temperature=0.4), simclr (temperature=0.4)": 1,
            "shuffle, simclr (temperature=0.4)": -1,
            "refined (pool=128, temperature=0.1), simclr (temperature=0.1)": -1,
            "shuffle, simclr (temperature=0.1)": 1,
        },
        "0.0158 [0.0086, 0.0230]",
    ),
    (
        "hardness_fashion_mnist",
        {
            "refined (pool=128, temperature=0.05), simclr (temperature=0.05)": 1,
            "shuffle, simclr (temperature=0.05)": -1,
            "refined (pool=128, temperature=0.1), simclr (temperature=0.1)": -1,
            "shuffle, simclr (temperature=0.1)": 1,
        },
        "0.0117 [0.0017, 0.0218]",
    ),
    (
        "hardness_fashion_mnist",
        {
            "refined (pool=128, temperature=0.1), simclr (temperature=0.1)": 1,
            "refined (pool=128, temperature=0.2), simclr (temperature=0.2)": -1,
        },
        "0.0022 [−0.0027, 0.0070]",
    ),
    (
        "hardness_fashion_mnist",
        {
            "refined (pool=128, temperature=0.4), simclr (temperature=0.4)": 1,
            "shuffle, simclr (temperature=0.4)": -1,
            "refined (pool=128, temperature=0.8), simclr (temperature=0.8)": -1,
            "shuffle, simclr (temperature=0.8)": 1,
        },
        "0.0078 [0.0028, 0.0128]",
    ),
    (
        "hardness_fashion_mnist val/retrieval/mrr",
        {
            "refined (pool=128, temperature=0.1), simclr (temperature=0.1)": 1,
            "shuffle, simclr (temperature=0.1)": -1,
        },
        "−0.0109 [−0.0199, −0.0019]",
    ),
    (
        "community_fashion_mnist",
        {"refined (pool=null, community=32)": 1, "refined (pool=null, community=16)": -1},
        "0.0244 [0.0195, 0.0292]",
    ),
    (
        "false_negatives_code_docs",
        {"shuffle, apart=null": 1, "shuffle, apart=labels": -1},
        "0.0046 [0.0038, 0.0053]",
    ),
    (
        "false_negatives_code_docs",
        {
            "refined (relative_margin=null, pool=64), apart=null": 1,
            "refined (relative_margin=null, pool=64), apart=labels": -1,
        },
        "0.0047 [0.0041, 0.0054]",
    ),
    (
        "false_negatives_code_docs",
        {
            "refined (relative_margin=null, pool=64), apart=null": 1,
            "shuffle, apart=null": -1,
            "refined (relative_margin=null, pool=64), apart=labels": -1,
            "shuffle, apart=labels": 1,
        },
        "0.0001 [−0.0009, 0.0012]",
    ),
    (
        "false_negatives_code_docs",
        {
            "refined (relative_margin=null, pool=64), apart=null": 1,
            "refined (relative_margin=0.05, pool=64), apart=null": -1,
        },
        "0.0031 [0.0022, 0.0039]",
    ),
    (
        "false_negatives_code_docs",
        {
            "refined (relative_margin=null, pool=64), apart=labels": 1,
            "refined (relative_margin=0.05, pool=64), apart=labels": -1,
        },
        "0.0025 [0.0020, 0.0030]",
    ),
    ("objectives_digits", {"shuffle, dcl": 1, "shuffle, simclr": -1}, "0.0014 [−0.0037, 0.0064]"),
    ("objectives_digits", {"shuffle, sogclr": 1, "shuffle, simclr": -1}, "0.0180 [0.0136, 0.0224]"),
    (
        "objectives_digits",
        {
            "refined (pool=128), dcl": 1,
            "shuffle, dcl": -1,
            "refined (pool=128), simclr": -1,
            "shuffle, simclr": 1,
        },
        "−0.0021 [−0.0076, 0.0035]",
    ),
    (
        "objectives_digits",
        {
            "refined (pool=128), sogclr": 1,
            "shuffle, sogclr": -1,
            "refined (pool=128), simclr": -1,
            "shuffle, simclr": 1,
        },
        "−0.0024 [−0.0077, 0.0028]",
    ),
    (
        "objectives_digits",
        {"shuffle, sogclr, epochs=14": 1, "shuffle, simclr, epochs=14": -1},
        "0.0151 [0.0070, 0.0232]",
    ),
    (
        "objectives_digits",
        {"refined (pool=128), sogclr": 1, "refined (pool=128), simclr": -1},
        "0.0156 [0.0092, 0.0219]",
    ),
    ("objectives_code_docs", {"shuffle, sogclr": 1, "shuffle, clip": -1}, "0.0090 [0.0077, 0.0104]"),
]


# Sections of the text, and the studies whose numbers each may quote: its own, and those that it compares them with.
SECTIONS = {
    "Temperature": "hardness_.*",
    "Batch size": "batch_size_.*",
    "Community size": "community_.*|samplers_digits|batch_size_code_docs|hardness_fashion_mnist",
    "False negatives": "false_negatives_.*",
    "Objective": "objectives_.*",
    "Early or late?": "schedules_.*",
    "Forward passes to the same quality": "time_to_quality_.*|samplers_code_docs",
    "Samplers: SC > OSGD > SGD?": "samplers_.*",
}


def rows_of(folder: Path) -> pandas.DataFrame:
    """The finished trials that measure, with the number of their setting, found by the values of the swept keys."""
    rows = pandas.read_csv(folder / "results.csv")
    texts = {
        name: pandas.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
        for name in ("results", "summary")
    }
    keys = [key for key in texts["summary"].columns if "/" not in key and key in texts["results"].columns]
    names = {name: table[keys].agg("|".join, axis=1) for name, table in texts.items()}
    assert names["summary"].is_unique
    rows["setting"] = names["results"].map(
        dict(zip(names["summary"], texts["summary"]["setting"].astype(int), strict=True))
    )
    assert rows["setting"].notna().all()
    return rows[rows["status"] == "finished"]


def t_interval(pairs: pandas.Series) -> tuple[float, float]:
    """The 95 % t interval of paired differences."""
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
    return pairs.mean() - half, pairs.mean() + half


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_differences_of_a_study_follow_from_its_rows(folder):
    rows, compared = rows_of(folder), pandas.read_csv(folder / "comparison.csv")
    values = {setting: group.set_index("seed") for setting, group in rows.groupby("setting")}
    assert len(compared) > 0
    for row in compared.itertuples():
        pairs = (values[row.setting][row.metric] - values[row.baseline][row.metric]).dropna()
        assert len(pairs) == row.n
        assert row.difference == pytest.approx(pairs.mean(), rel=1e-9, abs=1e-12)
        assert (row.ci_low, row.ci_high) == pytest.approx(t_interval(pairs), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_p_values_of_the_headline_are_those_of_all_sign_flips(folder):
    rows, compared = rows_of(folder), pandas.read_csv(folder / "comparison.csv")
    headline = compared[compared["metric"] == "retrieval/mrr"]
    for row in headline.itertuples():
        one, other = (
            rows[rows["setting"] == number].set_index("seed")[row.metric] for number in (row.setting, row.baseline)
        )
        pairs = (one - other).dropna().to_numpy()
        signs = 1 - 2 * (np.arange(2 ** len(pairs))[:, None] >> np.arange(len(pairs)) & 1)
        flipped = np.abs(signs @ pairs)
        assert row.p == pytest.approx((flipped >= flipped[0] * (1 - 1e-9)).mean(), rel=1e-9)
    assert (headline["comparisons"] == len(headline)).all()


@pytest.mark.slow
def test_the_document_of_results_is_what_the_folders_give(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*COMMAND, str(tmp_path / "study_results.md")]) == 0
    assert (tmp_path / "study_results.md").read_text() == (ROOT / "docs/study_results.md").read_text()
    figures = {path.name for path in (tmp_path / "study_results_figures").iterdir()}
    assert figures == {path.name for path in (ROOT / "docs/study_results_figures").iterdir()}
    for name in sorted(figures):
        made, kept = (folder / "study_results_figures" / name for folder in (tmp_path, ROOT / "docs"))
        assert made.read_bytes() == kept.read_bytes(), name


def test_every_number_of_the_text_is_one_of_the_results():
    """The prose quotes differences with a sign; each must stand in a table of the results."""
    text = (ROOT / "docs/study.md").read_text().replace("\n", " ")
    for *_, interval in EXPLORATORY:
        text = text.replace(interval, "")
    results = (ROOT / "docs/study_results.md").read_text()
    quoted = set(re.findall(r"[+−]\d\.\d{4}", text))
    assert quoted
    assert quoted <= set(re.findall(r"[+−]\d\.\d{4}", results)), quoted - set(re.findall(r"[+−]\d\.\d{4}", results))


@pytest.mark.parametrize("heading", SECTIONS)
def test_numbers_of_a_section_are_those_of_its_studies(heading):
    """With a sign they are differences, without one means; numbers below 0.05 without a sign are of choosing seeds."""
    parts = re.split(r"^#+ (.+)$", (ROOT / "docs/study.md").read_text(), flags=re.MULTILINE)
    section = parts[parts.index(heading) + 1].replace("\n", " ")
    for study, _, interval in EXPLORATORY:
        if re.fullmatch(SECTIONS[heading], study.split()[0]):
            section = section.replace(interval, "")
    tables = re.split(r"^## (\w+)$", (ROOT / "docs/study_results.md").read_text(), flags=re.MULTILINE)
    names = [name for name in tables[1::2] if re.fullmatch(SECTIONS[heading], name)]
    known = {number for name in names for number in re.findall(r"[+−]?\b\d\.\d{4}", tables[tables.index(name) + 1])}
    means = [pandas.read_csv(ROOT / "studies" / name / "summary.csv")["val/retrieval/mrr/mean"] for name in names]
    known |= {f"{mean:.4f}" for mean in pandas.concat(means)}
    quoted = {number for number in re.findall(r"[+−]?\b\d\.\d{4}", section) if number[0] in "+−" or number >= "0.05"}
    assert quoted
    assert quoted <= known, quoted - known


@pytest.mark.parametrize("study, signs, text", EXPLORATORY)
def test_exploratory_comparisons_of_the_text_follow_from_the_rows(study, signs, text):
    """They are in no table: a sum of settings with signs, paired by seed, with its 95 % t interval."""
    name, _, metric = study.partition(" ")
    folder = ROOT / "studies" / name
    rows, summary = rows_of(folder), pandas.read_csv(folder / "summary.csv")
    numbers = summary.set_index("label")["setting"]
    by_setting = {label: rows[rows["setting"] == numbers[label]].set_index("seed") for label in signs}
    values = sum(sign * by_setting[label][metric or "retrieval/mrr"] for label, sign in signs.items())
    low, high = t_interval(values)
    assert text == f"{values.mean():.4f} [{low:.4f}, {high:.4f}]".replace("-", "−")
    assert text in (ROOT / "docs/study.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("pool, seeds, text", [(64, 8, "1.11 to 1.29"), (128, 3, "1.29 to 1.54")])
def test_ratios_of_passes_of_the_text_follow_from_the_curves(pool, seeds, text):
    """The forward passes until the last validation value of random batches, over theirs, where that is reached."""
    folder, reached = ROOT / "studies/time_to_quality_digits", []
    rows = rows_of(folder).set_index(["sampler", "seed"])
    for seed in range(10):
        hard = rows.loc["refined"].query("`sampler.pool` == @pool").loc[seed]
        curves = [
            pandas.read_json(folder / "trials" / trial / "metrics.jsonl", lines=True)
            for trial in (rows.loc[("shuffle", seed), "trial_id"], hard["trial_id"])
        ]
        target = curves[0]["val/retrieval/mrr"].iloc[-1]
        passes = [curve.loc[curve["val/retrieval/mrr"] >= target, "work/passes"].min() for curve in curves]
        reached += [passes[1] / passes[0]] if passes[1] > 0 else []
    assert len(reached) == seeds
    assert text == f"{min(reached):.2f} to {max(reached):.2f}"
    assert text in (ROOT / "docs/study.md").read_text().replace("\n", " ")


def test_the_studies_stay_small():
    size = sum(path.stat().st_size for path in (ROOT / "studies").rglob("*") if path.is_file())
    assert size <= MAX_BYTES
