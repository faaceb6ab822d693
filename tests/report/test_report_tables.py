import csv
import io
import math

import pytest
from report.studies import FULL, OSGD, SHUFFLE, TOP1, grid, partial, raced, study, trial

from mbcl.report.tables import comparison_csv, results_csv, summary_csv
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import compare, estimate, summarise


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_results_have_a_row_a_trial_in_the_order_of_the_study() -> None:
    text = results_csv(partial())
    found = rows(text)
    assert text.count("\n") == 10  # the error of two lines is one line here
    assert [row["trial_id"] for row in found] == [f"{i:03d}-aa" for i in range(9)]
    statuses = ["finished", "finished", "failed", "finished", "stopped", "pending", "pending", "finished", "finished"]
    assert [row["status"] for row in found] == statuses
    assert found[2]["error"] == "the loss is nan at step 3"
    header = text.splitlines()[0].split(",")
    assert header[:7] == ["trial_id", "status", "error", "sampler", "objective", "seed", "sampler.k"]
    assert header[-7:] == [
        TOP1,
        "retrieval/u2v/median_rank",
        "retrieval/v2u/top1",
        "plan/lift",
        "seconds/training",
        "seconds/evaluation",
        "seconds/total",
    ]
    assert len(header) == len(set(header))
    assert (found[0]["sampler.k"], found[3]["sampler.k"], found[3]["sampler.criterion"]) == ("", "20", "max")
    assert (found[0]["plan/lift"], found[5][TOP1]) == ("", "")


def test_a_stopped_trial_has_no_final_metrics_and_says_where_it_was_stopped() -> None:
    record = raced()
    found = rows(results_csv(record))
    assert [row["status"] for row in found] == ["finished"] * 3 + ["stopped"] * 3 + ["finished"] * 3
    assert [row["stopped/epoch"] for row in found] == [""] * 3 + ["2", "0", "0"] + [""] * 3
    assert [row["stopped/value"] for row in found[3:6]] == ["0.25", "", ""]
    assert {row["stopped/by"] for row in found[3:6]} == {"asha"}
    assert {row[TOP1] for row in found[3:6]} == {""}
    assert [row[f"{TOP1}/n"] for row in rows(summary_csv(record, summarise(record)))] == ["3", "0", "3"]
    osgd, spectral = compare(record, TOP1)
    assert (osgd.verdict, osgd.difference) == ("not comparable (no seed finished in both)", None)
    assert (spectral.n, spectral.comparisons) == (3, 1)
    assert "stopped/epoch" not in results_csv(grid(FULL))


def test_results_do_not_depend_on_the_order_of_mappings() -> None:
    record = partial()
    turned = record.model_copy(update={"trials": dict(reversed(record.trials.items()))}, deep=True)
    for t in turned.trials.values():
        t.metrics, t.seconds = dict(reversed(t.metrics.items())), dict(reversed(t.seconds.items()))
    assert results_csv(turned) == results_csv(record)
    assert summary_csv(turned, summarise(turned)) == summary_csv(record, summarise(record))
    again = StudyRecord.model_validate_json(record.model_dump_json())
    assert results_csv(again) == results_csv(record)


@pytest.mark.parametrize("record", [grid(FULL), partial(), grid({"shuffle": [1 / 3, 0.1 + 0.2, math.pi / 4]})])
def test_summary_is_recomputed_exactly_from_results(record: StudyRecord) -> None:
    results = rows(results_csv(record))
    for row in rows(summary_csv(record, summarise(record))):
        same = [r for r in results if r["sampler"] == row["sampler"] and r["status"] == "finished"]
        for metric in ("retrieval/u2v/top1", "retrieval/v2u/top1", "plan/lift"):
            found = estimate([float(r[metric]) for r in same if r.get(metric)])
            if found is None:
                assert row[f"{metric}/n"] == "0"
                assert row[f"{metric}/mean"] == ""
                continue
            assert int(row[f"{metric}/n"]) == found.n
            for part in ("mean", "sd", "ci_low", "ci_high"):
                text, value = row[f"{metric}/{part}"], getattr(found, part)
                assert (float(text) if text else None) == value


def test_comparison_is_recomputed_exactly_from_results() -> None:
    record = grid(FULL)
    values = {(r["sampler"], r["seed"]): float(r[TOP1]) for r in rows(results_csv(record))}
    for row in rows(comparison_csv(compare(record, TOP1))):
        sampler = row["label"].split()[0]
        found = estimate([values[sampler, str(s)] - values["shuffle", str(s)] for s in range(3)])
        assert found is not None
        assert (float(row["difference"]), float(row["ci_low"]), int(row["n"])) == (found.mean, found.ci_low, found.n)
        assert row["comparisons"] == "2"


def test_single_seed_has_empty_cells_and_no_nan() -> None:
    record = grid({"shuffle": [0.5], "spectral": [0.6]})
    (first, _) = rows(summary_csv(record, summarise(record)))
    assert (first[f"{TOP1}/mean"], first[f"{TOP1}/n"]) == ("0.5", "1")
    assert first[f"{TOP1}/sd"] == first[f"{TOP1}/ci_low"] == first[f"{TOP1}/ci_high"] == ""
    for text in (results_csv(record), summary_csv(record, summarise(record)), comparison_csv(compare(record, TOP1))):
        assert "nan" not in text.lower()
        assert "none" not in text.lower()


def test_values_that_are_no_numbers_become_empty_cells() -> None:
    record = study([trial(0, 0, 0, SHUFFLE, 0.5, metrics={TOP1: math.nan, "plan/lift": -math.inf})])
    (row,) = rows(results_csv(record))
    assert (row[TOP1], row["plan/lift"]) == ("", "")


def test_hostile_text_survives_the_round_trip() -> None:
    name = 'a,"b"\t; <script>'
    record = study([trial(0, 0, 0, OSGD | {"criterion": name}, 0.5, error='x,"y"', status="failed")])
    (row,) = rows(results_csv(record))
    assert (row["sampler.criterion"], row["error"]) == (name, 'x,"y"')


def test_null_is_a_value_and_absent_is_not() -> None:
    blocks = [{"name": "spectral", "k": None}, SHUFFLE]
    record = study([trial(i, i, 0, block, 0.5) for i, block in enumerate(blocks)])
    assert [row["sampler.k"] for row in rows(results_csv(record))] == ["null", ""]


def test_an_empty_study_has_headers() -> None:
    assert results_csv(study([])) == "trial_id,status,error,sampler,objective,seed\n"
    assert summary_csv(study([]), []) == "setting,label,sampler,objective\n"
    assert rows(comparison_csv([])) == []
