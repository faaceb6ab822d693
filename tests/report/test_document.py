"""The Markdown document of studies, checked against the CSV files of their folders."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.grids import temperatures
from report.studies import EIGHT, FULL, MRR, TOP1, grid, partial, study, trial, write_histories
from report.test_controls import controlled
from report.test_nuisance import tuned
from report.test_page import HOSTILE
from scipy import stats

from mbcl.cli import main
from mbcl.io.store import LocalStore
from mbcl.report import write
from mbcl.report.document_section import seeds_to_decide
from mbcl.report.markdown import code_cell, escaped, fenced, table
from mbcl.report.wording import printable
from mbcl.study.comparisons import Comparison, compare
from mbcl.study.record import Efficiency, StudyRecord, write_study

Rows = list[dict[str, str]]
FEW = {"taus": (0.05, 0.1, 0.5), "samplers": ("refined",)}


def folder_of(place: Path, record: StudyRecord, epochs: int = 3) -> Path:
    store = LocalStore(place)
    write_study(store, record)
    write_histories(store, record, epochs)
    return place


def document(place: Path, *folders: Path) -> str:
    assert main(["report", *map(str, folders), "--markdown", str(place / "all.md")]) == 0
    return (place / "all.md").read_text(encoding="utf-8")


def tables(text: str) -> list[Rows]:
    """The tables of a document; a repeated name in a head gets a number."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        ]
        assert all(re.fullmatch("-{3}:?", cell) for cell in rule)
        assert {len(head)} == {len(rule), *map(len, rows)}
        names = [f"{name} {head[:i].count(name) + 1}" if head.count(name) > 1 else name for i, name in enumerate(head)]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def numbers(cell: str) -> list[float]:
    return [float(word) for word in re.findall(r"[-+]?\d+\.\d+", cell.replace("\N{MINUS SIGN}", "-"))]


def check_links(place: Path, text: str) -> list[str]:
    """Every figure is a file beside the document, every file is linked, and all are whole SVG on white."""
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert sorted(links) == sorted(f"all_figures/{path.name}" for path in (place / "all_figures").iterdir())
    for link in links:
        content = (place / unquote(link)).read_text(encoding="utf-8")
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].tag.endswith("rect") or root[1].tag.endswith("rect")
        assert '<rect width="100%" height="100%" fill="#ffffff"/>' in content
        assert "var(--" not in content
    return links


def test_the_table_agrees_with_the_csv_files(tmp_path: Path) -> None:
    record = temperatures(**FEW)
    folder = folder_of(tmp_path / "grid", record)
    write(LocalStore(folder), record)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = document(tmp_path, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, "nothing is written"
    found, exploratory = tables(text)
    with (folder / "summary.csv").open() as stream:
        summaries = list(csv.DictReader(stream))
    with (folder / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    compared = {(r["label"], r["control"]): r for r in rows if r["metric"] == MRR}
    others = [r for r in rows if r["metric"] == TOP1 and r["control"] == "equal_steps"]
    assert [row["setting"] for row in exploratory] == [r["label"] for r in others]
    for row, other in zip(exploratory, others, strict=True):
        expected = [float(other[part]) for part in ("difference", "ci_low", "ci_high")]
        assert numbers(row[f"`{TOP1}`"]) == pytest.approx(expected, abs=6e-5)
    assert len(found) == len(summaries) == 9
    for row, summary in zip(found, summaries, strict=True):
        label = re.sub(r" \((baseline|control)\)$", "", row["setting"])
        assert label == summary["label"]
        assert ("(baseline)" in row["setting"]) == (summary["sampler"] == "shuffle" and not summary["train.epochs"])
        assert ("(control)" in row["setting"]) == bool(summary["train.epochs"])
        assert row["n"] == summary[f"{MRR}/n"] == "8"
        expected = [float(summary[f"{MRR}/{part}"]) for part in ("mean", "ci_low", "ci_high")]
        assert numbers(row[f"`{MRR}`"]) == pytest.approx(expected, abs=6e-5)
        assert numbers(row["`train/same_class`"]) == pytest.approx([float(summary["train/same_class/mean"])], rel=1e-3)
        for number, (words, control) in enumerate(
            (("at equal epochs", "equal_steps"), ("at equal forward passes", "equal_passes")), 1
        ):
            comparison = compared.get((label, control))
            if comparison is None:
                assert row[f"difference {words}"] == row[f"verdict {number}"] == "–"
                continue
            expected = [float(comparison[part]) for part in ("difference", "ci_low", "ci_high")]
            assert numbers(row[f"difference {words}"]) == pytest.approx(expected, abs=6e-5)
            assert numbers(row[f"p (Holm) {number}"]) == pytest.approx([float(comparison["p_holm"])], abs=6e-4)
            assert row[f"verdict {number}"].startswith(comparison["verdict"])


def test_the_same_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [
        folder_of(tmp_path / "grid", temperatures(**FEW), 12),
        folder_of(tmp_path / "other", grid(EIGHT, name="x")),
    ]
    found = []
    for name in ("first", "second"):
        place = tmp_path / name
        place.mkdir()
        text = document(place, *folders)
        links = check_links(place, text)
        found.append((text, [(place / link).read_bytes() for link in links]))
    assert found[0] == found[1]


def test_a_study_has_its_figures_and_several_have_common_ones(tmp_path: Path, capsys) -> None:
    folders = [folder_of(tmp_path / name, temperatures(**FEW, name=name)) for name in ("digits", "letters")]
    text = document(tmp_path, folders[0])
    assert capsys.readouterr().out == f"{tmp_path}/all.md\n"
    gains = ["gain_by_objective_temperature", "gain_against_train_same_class", "gain_against_plan_lift"]
    own = ["difference_retrieval_mrr", *gains]
    assert check_links(tmp_path, text) == [f"all_figures/digits_{name}.svg" for name in own]
    assert re.findall("^#+ .*", text, flags=re.MULTILINE) == ["# digits"]
    text = document(tmp_path, *folders)
    names = [f"studies_{name}" for name in gains] + [f"{name}_{each}" for name in ("digits", "letters") for each in own]
    assert check_links(tmp_path, text) == [f"all_figures/{name}.svg" for name in names]
    assert re.findall("^#+ .*", text, flags=re.MULTILINE) == ["# 2 studies", "## digits", "## letters"]
    common, *_ = tables(text)
    assert [row["setting"] for row in common][0].startswith("refined (pool=128, temperature=0.05)")
    document(tmp_path, folders[1])
    assert not (tmp_path / "all_figures" / "digits_difference_retrieval_mrr.svg").exists(), "those before are stale"


def test_an_undecided_verdict_says_how_many_pairs_it_takes(tmp_path: Path) -> None:
    record = grid({name: values[:6] for name, values in EIGHT.items()})
    found, *_ = tables(document(tmp_path, folder_of(tmp_path / "a", record)))
    _, osgd, spectral = found
    assert osgd["verdict"] == "no difference larger than 0.01"
    assert spectral["verdict"] == "undecided: takes about 7 pairs", "six pairs cannot pass Holm's correction for two"
    few = grid({"shuffle": [0.5, 0.6], "spectral": [0.7, 0.9]}, equivalence=1e-6)
    found, *_ = tables(document(tmp_path, folder_of(tmp_path / "b", few)))
    assert found[1]["verdict"] == "undecided: takes more than 1,000 pairs"
    for sign, end in ((1, "+"), (-1, "−")):  # twenty pairs would tell 0.01 from none, and here it is about 0.005
        spectral = [0.5 + sign * 0.0052 + (-1) ** seed * 0.0115 for seed in range(20)]
        between = grid({"shuffle": [0.5] * 20, "spectral": spectral})
        found, *_ = tables(document(tmp_path, folder_of(tmp_path / f"between{sign}", between)))
        assert found[1]["verdict"] == f"undecided: perhaps between 0 and {end}0.01, which 17 pairs tell apart"
    one = grid({"shuffle": [0.5], "spectral": [0.7]})
    found, *_ = tables(document(tmp_path, folder_of(tmp_path / "c", one)))
    assert found[1]["verdict"] == "undecided", "one pair has no spread"


@pytest.mark.parametrize(
    "pairs, difference, words",
    [
        (12, 0.4, "takes about 13 pairs"),
        (13, 0.4, "perhaps between 0 and +1, which 13 pairs tell apart"),
        (14, -0.4, "perhaps between 0 and −1, which 13 pairs tell apart"),
    ],
)
def test_an_undecided_comparison_with_enough_pairs_takes_no_more(pairs: int, difference: float, words: str) -> None:
    undecided = Comparison(MRR, 1, "spectral", 0, "shuffle", difference, sd=1.0, n=pairs, comparisons=1)
    assert seeds_to_decide(undecided, 1.0) == words


def test_so_many_pairs_decide(tmp_path: Path) -> None:
    """Normal differences of the observed spread: t intervals and tests of SciPy at the level of Holm's first step."""
    values = {"shuffle": [0.5 + s / 1000 for s in range(8)], "spectral": [0.5 + (s * 5 % 8) / 400 for s in range(8)]}
    (comparison,) = compare(grid(values), MRR)
    pairs = int(re.findall(r"(\d+) pairs", seeds_to_decide(comparison, 0.01))[0])
    assert comparison.sd is not None
    shares = []
    for mean in (0.0, 0.01):
        samples = stats.norm.rvs(mean, comparison.sd, size=(4000, pairs), random_state=1)
        interval = stats.ttest_1samp(samples, 0.0, axis=1).confidence_interval(0.95)
        if mean:
            shares.append(((interval.low > 0) | (interval.high < 0)).mean())
        else:
            shares.append(((interval.low > -0.01) & (interval.high < 0.01)).mean())
    assert min(shares) > 0.8 - 4 * math.sqrt(0.16 / 4000)


def test_nuisance_values_failures_cost_and_versions(tmp_path: Path) -> None:
    record = tuned()
    record.efficiency = Efficiency(devices=2, device="core", wall=100.0, work=150.0, busy=180.0)
    text = document(tmp_path, folder_of(tmp_path / "tuned", record))
    found, *_ = tables(text)
    assert [row["chosen"] for row in found] == ["lr=0.2", "lr=0.2"]
    assert "20 trials (20 finished), 64.0 s of trials. The last run took 100.0 s; efficiency: 0.75 of 2 cores" in text
    assert "Versions: mbcl 0.1.0, python 3.11." in text
    command = f"python run_ray.py --space {tmp_path}/tuned/space.yaml --results-dir {tmp_path} --name tuned-again"
    assert f"```\n{command}\n```" in text
    text = document(tmp_path, folder_of(tmp_path / "partial", partial()))
    assert "1 trial of 9 failed:\n\n- 1: the loss is nan at step 3\n" in text
    assert "Of 9 trials, 1 stopped, 1 failed and 2 pending" in text


def test_a_document_says_how_far_controls_are_from_equal_passes(tmp_path: Path) -> None:
    record = temperatures(**FEW)
    assert "Controls train" not in document(tmp_path, folder_of(tmp_path / "none", record)), "no passes are recorded"
    for one in record.trials.values():
        longer = 15 if one.parameters["objective.temperature"] == 0.5 else 12
        one.metrics["work/passes"] = 960 * longer if one.is_control else {"shuffle": 9600}.get(one.sampler, 12800)
    text = document(tmp_path, folder_of(tmp_path / "some", record))
    assert "Controls train whole epochs: their forward passes are −10 to +12 % from those of their settings." in text
    for one in record.trials.values():
        one.metrics["work/passes"] = 12800
    text = document(tmp_path, folder_of(tmp_path / "equal", record))
    assert "their forward passes are 0 % from those of their settings." in text


def test_pairs_that_are_fewer_than_seeds_are_told(tmp_path: Path) -> None:
    record = grid({"shuffle": [*EIGHT["shuffle"][:6], None, None], "spectral": EIGHT["spectral"]})
    found, *_ = tables(document(tmp_path, folder_of(tmp_path / "a", record)))
    assert found[1]["n"] == "8"
    assert found[1]["difference at equal epochs"].endswith(", 6 pairs")


def test_the_passes_to_quality_have_a_table_from_ten_epochs(tmp_path: Path) -> None:
    text = document(tmp_path, folder_of(tmp_path / "a", controlled(), epochs=30))
    *_, passes = tables(text)
    assert [row["setting"] for row in passes] == ["spectral (k=4)"]
    assert passes[0]["seeds that reached it"] == "8 of 8"
    assert numbers(passes[0]["ratio (95 % interval)"]) == pytest.approx([1290 / 960] * 3, abs=1e-3)
    assert len(tables(document(tmp_path, folder_of(tmp_path / "b", controlled(), epochs=3)))) == 2


@pytest.mark.parametrize(
    "record",
    [study([]), grid({"shuffle": [None]}), grid(FULL, baseline={}), grid(EIGHT, searched=True, baseline={})],
    ids=["empty", "pending", "no baseline", "search"],
)
def test_a_study_of_few_results_has_a_document(tmp_path: Path, record: StudyRecord) -> None:
    text = document(tmp_path, folder_of(tmp_path / "a", record))
    check_links(tmp_path, text)
    assert "baseline, with" not in text, "nothing is compared"
    assert not re.search(r"\b(nan|None|inf)\b", text)
    assert " to " not in "".join(row[f"`{MRR}`"] for row in (tables(text) or [[]])[0]) or not record.is_search


def test_hostile_names_stay_text_and_inside_the_folder(tmp_path: Path) -> None:
    trials = [
        trial(i, i // 2, i % 2, {"name": name}, 0.5 + i / 10) for i, name in enumerate(["shuffle"] * 2 + [HOSTILE] * 2)
    ]
    trials.append(trial(4, 2, 0, {"name": "osgd"}, error=f"{HOSTILE}\n# no heading\n- ```", status="failed"))
    record = study(trials, name=f"../../{HOSTILE}", question="# x | y\n<b>")
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    text = document(place, folder_of(tmp_path / "a", record))
    check_links(place, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep"]
    assert len(re.findall("^#", text, flags=re.MULTILINE)) == 1
    assert not re.search(r"(?<!\\)<(?!\s)", re.sub(r"(?s)```.*?```", "", text))
    assert "\x00" not in text
    assert "\u202e" not in text
    tables(text)


@given(st.text(max_size=60))
def test_escaped_text_is_text(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = " ".join(printable(text).split())
    tokens = parser.parse(f"| a |\n| --- |\n| {escaped(text)} |\n")
    inline = [token for token in tokens if token.type == "inline"][-1]
    assert all(child.type == "text" for child in inline.children or [])
    assert "".join(child.content for child in inline.children or []) == shown
    assert [token.type for token in parser.parse(fenced(text))] == ["fence"]
    tokens = parser.parse(table(["a", "b"], [[code_cell(text), "2"]]))
    cells = [token.children for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert [(child.type, child.content) for child in cells[2]] == ([("code_inline", shown)] if shown else [])


@pytest.mark.parametrize("file", [".", "none/all.md"])
def test_a_document_needs_a_place(file: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(LocalStore(tmp_path / "a"), grid(EIGHT))
    assert main(["report", "a", "--markdown", file]) == 2
    assert capsys.readouterr().err == f"error: --markdown: expected a file in a folder that exists, found {file}\n"
