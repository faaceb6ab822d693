"""Figures of gains against keys and metrics of the batches, on the page of a study and of several."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report.grids import TAUS, temperatures
from report.studies import EIGHT, FULL, MRR, SHUFFLE, grid, study, trial
from report.test_page import HOSTILE, check_self_contained

from mbcl.io.store import LocalStore
from mbcl.report import pictures, several_page, write
from mbcl.report.gain_figures import MAX_LINES, draw_gains, draw_gains_of_several
from mbcl.report.pictures import Picture
from mbcl.study.comparisons import compare
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import summarise

NAMES = ["gain_by_objective_temperature", "gain_against_train_same_class", "gain_against_plan_lift"]


def drawn_of(*studies: StudyRecord) -> list[Picture]:
    with pictures.style():
        if len(studies) == 1:
            return draw_gains(studies[0])
        return draw_gains_of_several({each.name: each for each in studies})


def embedded(text: str, table: str) -> list[dict[str, Any]]:
    (found,) = re.findall(rf'<script type="application/json" data-table="{table}">(.*?)</script>', text)
    content = json.loads(found)
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def test_the_page_has_every_gain_under_the_pointer_as_the_tables_have_it(tmp_path: Path) -> None:
    record = temperatures()
    write(LocalStore(tmp_path), record)
    text = (tmp_path / "report.html").read_text()
    check_self_contained(text)
    with (tmp_path / "comparison.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == MRR]
    with (tmp_path / "summary.csv").open() as stream:
        means = {row["label"]: row for row in csv.DictReader(stream)}
    for name, key in zip(NAMES, ("objective.temperature", "train/same_class", "plan/lift"), strict=True):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 4000
        shown = {(row["setting"], row["control"]): row for row in embedded(text, name)}
        assert len(shown) == len(embedded(text, name))
        references = [found for (_, control), found in shown.items() if control == "baseline"]
        assert len(references) == (len(TAUS) if key == "train/same_class" else 0)
        assert len(shown) - len(references) == len(rows) == 16
        for row in rows:
            found = shown[row["label"], row["control"]]
            assert found["pairs"] == int(row["n"]) == 8
            for column in ("difference", "ci_low", "ci_high"):
                assert found[column] == pytest.approx(float(row[column]), rel=1e-6)
            x = means[row["label"]][key if "." in key else f"{key}/mean"]
            assert found[key] == pytest.approx(float(x), rel=1e-6)


def test_every_row_has_a_place_and_its_size_is_that_of_its_difference() -> None:
    for picture in drawn_of(temperatures()):
        assert len(picture.at) == 2 * len(picture.rows)
        heights = dict(zip(picture.at[1::2], (row[3] for row in picture.rows), strict=True))
        by_height = [heights[y] for y in sorted(heights, reverse=True)]  # y grows downwards
        assert by_height == sorted(by_height)


def test_controls_are_dashed_and_told_in_the_legend_where_there_are_any() -> None:
    (by_key, *_) = drawn_of(temperatures())
    assert "at equal forward passes" in by_key.svg
    assert "hollow at equal forward passes" in by_key.caption
    assert "With objective.temperature changes sampler.temperature." in by_key.caption
    without = temperatures()
    for each in without.trials.values():
        each.equal_passes = None
    (by_key, *_) = drawn_of(without)
    assert "equal forward passes" not in by_key.svg + by_key.caption
    assert {row[1] for row in by_key.rows} == {"equal_steps"}


@pytest.mark.parametrize(("taus", "logarithmic"), [((0.1, 0.2, 0.5), False), ((0.05, 0.1, 0.4), True)])
def test_the_axis_is_logarithmic_from_a_factor_of_eight(taus: tuple[float, ...], logarithmic: bool) -> None:
    """On a logarithmic axis the places are as the logarithms of the values, up to the shift of a line."""
    (by_key, *_) = drawn_of(temperatures(taus, ("refined",)))
    places = {row[2]: x for row, x in zip(by_key.rows, by_key.at[::2], strict=True) if row[1] == "equal_steps"}
    low, middle, high = (places[tau] for tau in taus)
    share = 1 / 3 if logarithmic else 0.25
    assert (middle - low) / (high - low) == pytest.approx(share, abs=0.01)


def test_a_point_of_one_pair_has_no_interval() -> None:
    (by_key, *_) = drawn_of(temperatures(seeds=1))
    assert all(row[4] is row[5] is None for row in by_key.rows)
    assert "Without an interval: one pair of seeds" in by_key.caption


def test_many_groups_are_cut_to_those_of_most_values() -> None:
    blocks = [SHUFFLE, *({"name": "osgd", "k": k, "q": q} for q in range(1, 13) for k in (4, 8, 16)[: 2 + (q > 2)])]
    record = study([trial(i, i, 0, block, 0.5 + i / 100) for i, block in enumerate(blocks)])
    by_k = next(picture for picture in drawn_of(record) if picture.name == "gain_by_sampler_k")
    assert len(by_k.rows) == 3 * MAX_LINES
    assert f"Shown: the {MAX_LINES} of 12 groups of settings with most values." in by_k.caption


def test_two_settings_show_no_relation_to_a_metric() -> None:
    assert drawn_of(grid(FULL)) == []


def test_several_studies_have_a_panel_and_a_colour_each(tmp_path: Path) -> None:
    studies = [temperatures(name="digits"), temperatures(samplers=("refined",), name="letters")]
    studies[1].equivalence = 0.02
    by_key, same_class, lift = drawn_of(*studies)
    assert [each.name for each in (by_key, same_class, lift)] == NAMES
    assert by_key.wide
    assert not same_class.wide
    assert by_key.columns[0] == same_class.columns[0] == "study"
    for name, record in zip(("digits", "letters"), studies, strict=True):
        expected = {(c.label, c.control, round(c.difference or 0, 6)) for c in compare(record, MRR)}
        for picture in (by_key, same_class, lift):
            rows = [row for row in picture.rows if row[0] == name and row[2] != "baseline"]
            assert {(row[1], row[2], round(row[4], 6)) for row in rows} == expected
    assert "Grey band" not in by_key.caption, "the studies have margins of their own"
    text = several_page(["a", "b"], studies)
    assert 'class="wide" data-name="gain_by_objective_temperature"' in text
    check_self_contained(text)


def test_studies_of_one_name_are_told_apart_by_their_folders() -> None:
    text = several_page(["a/grid", "b/grid"], [temperatures(), temperatures()])
    rows = embedded(text, NAMES[0])
    assert {row["study"] for row in rows} == {"a/grid", "b/grid"}


def test_a_study_without_the_key_has_no_panel() -> None:
    by_key, *others = drawn_of(temperatures(name="with"), grid(EIGHT, name="without"))
    assert {row[0] for row in by_key.rows} == {"with"}
    assert not by_key.wide
    assert {row[0] for row in others[-1].rows} == {"with", "without"}, "both have a lift"


def test_hostile_names_are_escaped() -> None:
    studies = [temperatures(name=HOSTILE), temperatures(samplers=("<b>",), name="<i>&amp;")]
    page = check_self_contained(several_page(["a", "b"], studies))
    assert "<b>" in page.text


def test_means_of_the_summary_are_the_places_of_dots() -> None:
    record = temperatures()
    means = {s.label: s.metrics["train/same_class"].mean for s in summarise(record)}
    _, same_class, _ = drawn_of(record)
    assert all(row[2] == pytest.approx(means[row[0]], rel=1e-6) for row in same_class.rows)


def test_a_study_whose_groups_are_all_cut_has_no_panel() -> None:
    blocks = [SHUFFLE, *({"name": "osgd", "k": k, "q": q} for q in range(1, 10) for k in (4, 8, 16, 32))]
    many = study([trial(i, i, 0, block, 0.5 + i / 100) for i, block in enumerate(blocks)], name="many")
    blocks = [SHUFFLE, *({"name": "osgd", "k": k, "q": 40, "criterion": "min"} for k in (4, 8, 16))]
    few = study([trial(i, i, 0, block, 0.5 + i / 100) for i, block in enumerate(blocks)], name="few")
    by_k = next(picture for picture in drawn_of(few, many) if picture.name == "gain_by_sampler_k")
    assert {row[0] for row in by_k.rows} == {"many"}
    assert f"the {MAX_LINES} of 10 groups" in by_k.caption


def test_dots_have_the_groups_of_the_lines_or_their_samplers() -> None:
    _, same_class, _ = drawn_of(temperatures())
    assert "chain (pool=128)" in same_class.svg
    lift = drawn_of(temperatures(taus=TAUS[:2]))[-1]
    assert ">chain<" in lift.svg, "two temperatures make no line"


def test_the_results_table_has_the_share_of_same_class_pairs(tmp_path: Path) -> None:
    record = temperatures(TAUS[:1], ("refined",))
    write(LocalStore(tmp_path), record)
    (_, refined, _) = summarise(record)
    head, _, rows = (tmp_path / "report.html").read_text().partition('<th class="num">train/same_class</th>')
    assert head
    assert f'<td class="num">{refined.metrics["train/same_class"].mean:.4f}</td>' in rows


def test_settings_without_a_number_are_named_in_the_caption() -> None:
    blocks = [SHUFFLE, *({"name": "refined", "pool": 64, "community": size} for size in (1, 4, 16, None))]
    (by_key, *_) = drawn_of(study([trial(i, i, 0, block, 0.5) for i, block in enumerate(blocks)]))
    assert "Not shown, as they have no number there: refined (pool=64, community=null)." in by_key.caption
    assert len(by_key.rows) == 3
