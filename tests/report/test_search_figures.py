import itertools
import math
import re
from pathlib import Path

import pytest
from report.studies import MRR, SHUFFLE, grid, study, trial
from report.test_page import check_self_contained, write_report

from mbcl.report import pictures
from mbcl.report.heat_maps import draw_corruptions, draw_grid
from mbcl.report.row_figures import draw_rows
from mbcl.report.search_figures import MAX_LINES, draw_search, importances
from mbcl.study.record import StudyRecord
from mbcl.study.settings import measured_settings

KS, TEMPERATURES = (2, 4, 8), (0.05, 0.1, 0.2, 0.4)
VALIDATION = "val/retrieval/mrr"


def searched() -> StudyRecord:
    """Sixteen settings of two samplers, whose result follows the learning rate alone, and a failed one."""
    trials = []
    for number in range(16):
        rate = 10 ** (-3 + number / 8)
        block = SHUFFLE if number % 2 else {"name": "spectral", "k": 2 + number % 5}
        value = 0.5 + math.log10(rate) / 10
        parameters = {"sampler": dict(block), "optimizer.lr": rate, "schedule.warmup_epochs": number * 7 % 5}
        trials.append(trial(number, number, 0, block, value, parameters=parameters))
        trials[-1].metrics[VALIDATION] = value
    trials.append(trial(16, 16, 0, SHUFFLE, status="failed", error="boom", parameters={"optimizer.lr": 9.0}))
    return study(trials, searched=True, baseline={})


def test_parallel_coordinates_have_every_measured_setting() -> None:
    with pictures.style():
        parallel, _ = draw_search(searched())
    assert parallel.name == "parallel"
    assert parallel.columns == ("setting", "sampler", "sampler.k", "optimizer.lr", "schedule.warmup_epochs", VALIDATION)
    assert len(parallel.rows) == 16
    assert [row[-1] for row in parallel.rows] == sorted(row[-1] for row in parallel.rows), "the best is drawn last"
    assert {row[2] for row in parallel.rows if row[1] == "shuffle"} == {None}
    assert "the best is shuffle" in parallel.alt
    assert len(parallel.at) == 32


def test_a_key_of_the_worst_settings_alone_has_no_axis() -> None:
    trials = []
    for number in range(MAX_LINES + 2):
        block = SHUFFLE if number > 1 else {"name": "spectral", "k": 2 + number}
        parameters = {"sampler": dict(block), "optimizer.lr": 0.1 + number}
        trials.append(trial(number, number, 0, block, number / 1000, parameters=parameters))
        trials[-1].metrics[VALIDATION] = number / 1000
    found = study(trials, searched=True, baseline={})
    with pictures.style():
        parallel = draw_search(found)[0]
    assert parallel.columns == ("setting", "optimizer.lr", VALIDATION)
    assert len(parallel.rows) == MAX_LINES
    assert f"Shown are the best {MAX_LINES} of {MAX_LINES + 2}." in parallel.caption


def test_importances_find_the_key_that_matters() -> None:
    pytest.importorskip("optuna")
    measured = [(s, s.values_of(VALIDATION)[0]) for s in measured_settings(searched()) if s.finished]
    found = importances(measured)
    assert list(found) == sorted(found, key=found.__getitem__, reverse=True)
    assert set(found) == {"sampler", "optimizer.lr", "schedule.warmup_epochs"}, "k is not a key of every setting"
    assert sum(found.values()) == pytest.approx(1)
    assert found["optimizer.lr"] > 0.5
    assert importances(measured) == found
    assert importances([(setting, 1.0) for setting, _ in measured]) == {}
    with pictures.style():
        _, picture = draw_search(searched())
    assert dict(picture.rows).keys() >= {"optimizer.lr", "optimizer.lr (spectral)", "sampler.k (spectral)"}


def test_page_of_a_search_has_its_figures(tmp_path: Path) -> None:
    page = check_self_contained(write_report(tmp_path, searched(), histories=False))
    assert "Settings of the search" in page.text
    assert "fANOVA (Hutter et al. 2014), as Optuna computes it" in page.text
    with pictures.style():
        assert draw_search(grid({"shuffle": [0.5], "spectral": [0.6]})) == [], "a study that searches nothing"


def gridded(*, seeds: int = 2) -> StudyRecord:
    """A grid of k and temperature, whose result is known."""
    trials = []
    for setting, (k, temperature) in enumerate(itertools.product(KS, TEMPERATURES)):
        block = {"name": "spectral", "k": k, "temperature": temperature}
        for seed in range(seeds):
            trials.append(trial(len(trials), setting, seed, block, value=k / 10 + temperature + seed / 100))
    return study(trials, baseline={})


def test_a_grid_of_two_keys_is_a_map() -> None:
    with pictures.style():
        (picture,) = draw_grid(gridded())
    assert picture.columns == ("panel", "sampler.k", "sampler.temperature", MRR)
    assert len(picture.rows) == 12
    found = {tuple(row[1:3]): row[3] for row in picture.rows}
    for k, temperature in itertools.product(KS, TEMPERATURES):
        assert found[str(k), str(temperature)] == pytest.approx(k / 10 + temperature + 0.005, abs=1e-6)
    assert "the highest for spectral at 8 and 0.4" in picture.alt


def test_a_third_key_makes_panels_and_a_further_one_is_averaged() -> None:
    trials = []
    for number, (k, t, lr, warm) in enumerate(itertools.product((2, 4), (0.1, 0.2, 0.3), (1, 2, 3), (0, 10))):
        keys = {"optimizer.lr": lr, "schedule.warmup_epochs": warm}
        block = {"name": "spectral", "k": k, "temperature": t}
        trials.append(trial(number, number, 0, block, value=lr + warm, parameters={"sampler": block, **keys}))
    with pictures.style():
        (picture,) = draw_grid(study(trials, baseline={}))
    assert picture.columns[1:3] == ("optimizer.lr", "sampler.temperature")
    assert [row[0] for row in picture.rows[::9]] == ["sampler.k = 2", "sampler.k = 4"]
    assert {row[3] - float(row[1]) for row in picture.rows} == {5.0}
    assert "over schedule.warmup_epochs" in picture.caption


def test_draws_and_single_keys_are_no_grid() -> None:
    with pictures.style():
        assert draw_grid(searched()) == []
        assert draw_grid(grid({"shuffle": [0.5], "spectral": [0.6]})) == []


def test_corrupted_retrieval_is_drawn_by_corruption_and_severity(tmp_path: Path) -> None:
    record = grid({"shuffle": [0.5, 0.6], "spectral": [0.5, 0.6]})
    for number, each in enumerate(record.trials.values()):
        kinds = {"fog": 0.1, "frost": 0.2, "mean": 0.15}
        each.metrics |= {
            f"corrupted/clean/{kind}/{severity}/top1": 0.9 - severity * drop - number / 100
            for kind, drop in kinds.items()
            for severity in (1, 3, 5)
        }
    with pictures.style():
        by_severity, by_kind = draw_corruptions(record, measured_settings(record))
    assert by_severity.rows[0] == ["shuffle", 1, 0.745, 0.74, 0.75]
    assert len(by_severity.rows) == 6
    found = {tuple(row[:3]): row[3] for row in by_kind.rows}
    assert len(found) == 12
    assert found["spectral (k=4)", "frost", "5"] == pytest.approx(0.9 - 1.0 - 0.025, abs=1e-6)
    page = check_self_contained(write_report(tmp_path, record))
    assert "Retrieval of the clean image by corruption and severity" in page.text


def test_settings_of_a_search_stand_best_first_with_their_values_in_full() -> None:
    record = searched()
    with pictures.style():
        (picture,) = draw_rows(record, measured_settings(record))
    values = [row[2] for row in picture.rows if row[1] == "mean"]
    assert values == sorted(values, reverse=True)
    assert "lr=0.001334" in picture.svg
    assert not re.search(r'd="[^"]*\d\.\d{3}', picture.svg), "coordinates are rounded, texts are not"
