import csv
import io
import math

import pytest
from report.studies import FULL, MRR, OSGD, SHUFFLE, TOP1, grid, partial, raced, study, trial

from mbcl.report.tables import comparison_csv, results_csv, summary_csv
from mbcl.study.comparisons import compare
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import estimate, summarise


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_results_csv_has_one_row_for_each_trial_in_order() -> None:
    text = results_csv(partial())
    table = rows(text)
    assert text.count("\n") == 10  # the error of two lines becomes one line
    assert [row["trial_id"] for row in table] == [f"{i:03d}-aa" for i in range(9)]
    statuses = ["finished", "finished", "failed", "finished", "stopped", "pending", "pending", "finished", "finished"]
    assert [row["status"] for row in table] == statuses
    assert table[2]["error"] == "the loss is nan at step 3"
    header = text.splitlines()[0].split(",")
    assert header[:7] == ["trial_id", "status", "error", "sampler", "objective", "seed", "sampler.k"]
    assert header[-7:] == [
        MRR,
        TOP1,
        "retrieval/u2v/median_rank",
        "plan/lift",
        "seconds/training",
        "seconds/evaluation",
        "seconds/total",
    ]
    assert len(header) == len(set(header))
    assert (table[0]["sampler.k"], table[3]["sampler.k"], table[3]["sampler.criterion"]) == ("", "20", "max")
    assert (table[0]["plan/lift"], table[5][MRR]) == ("", "")


def test_results_csv_of_a_stopped_trial_has_its_epoch_and_no_metrics() -> None:
    record = raced()
    table = rows(results_csv(record))
    assert [row["status"] for row in table] == ["finished"] * 3 + ["stopped"] * 3 + ["finished"] * 3
    assert [row["stopped/epoch"] for row in table] == [""] * 3 + ["2", "0", "0"] + [""] * 3
    assert [row["stopped/value"] for row in table[3:6]] == ["0.25", "", ""]
    assert {row["stopped/by"] for row in table[3:6]} == {"asha"}
    assert {row[MRR] for row in table[3:6]} == {""}
    assert [row[f"{MRR}/n"] for row in rows(summary_csv(record, summarise(record)))] == ["3", "0", "3"]
    osgd, spectral = compare(record, MRR)
    assert (osgd.verdict, osgd.difference) == ("not comparable (no seed finished in both)", None)
    assert (spectral.n, spectral.comparisons) == (2, 1), "the seed that early stopping went by has no pair"
    assert "stopped/epoch" not in results_csv(grid(FULL))


def test_results_csv_ignores_the_order_of_mappings() -> None:
    record = partial()
    reversed_record = record.model_copy(update={"trials": dict(reversed(record.trials.items()))}, deep=True)
    for t in reversed_record.trials.values():
        t.metrics, t.seconds = dict(reversed(t.metrics.items())), dict(reversed(t.seconds.items()))
    assert results_csv(reversed_record) == results_csv(record)
    assert summary_csv(reversed_record, summarise(reversed_record)) == summary_csv(record, summarise(record))
    again = StudyRecord.model_validate_json(record.model_dump_json())
    assert results_csv(again) == results_csv(record)


@pytest.mark.parametrize("record", [grid(FULL), partial(), grid({"shuffle": [1 / 3, 0.1 + 0.2, math.pi / 4]})])
def test_summary_csv_can_be_recomputed_from_results(record: StudyRecord) -> None:
    results = rows(results_csv(record))
    for row in rows(summary_csv(record, summarise(record))):
        same = [r for r in results if r["sampler"] == row["sampler"] and r["status"] == "finished"]
        for metric in ("retrieval/mrr", "retrieval/top1", "plan/lift"):
            interval = estimate([float(r[metric]) for r in same if r.get(metric)])
            if interval is None:
                assert row[f"{metric}/n"] == "0"
                assert row[f"{metric}/mean"] == ""
                continue
            assert int(row[f"{metric}/n"]) == interval.n
            for part in ("mean", "sd", "ci_low", "ci_high"):
                text, value = row[f"{metric}/{part}"], getattr(interval, part)
                assert (float(text) if text else None) == value


def test_comparison_csv_can_be_recomputed_from_results() -> None:
    record = grid(FULL)
    values = {(r["sampler"], r["seed"]): float(r[MRR]) for r in rows(results_csv(record))}
    for row in rows(comparison_csv(compare(record, MRR))):
        sampler = row["label"].split()[0]
        interval = estimate([values[sampler, str(s)] - values["shuffle", str(s)] for s in range(3)])
        assert interval is not None
        assert (float(row["difference"]), float(row["ci_low"]), int(row["n"])) == (
            interval.mean,
            interval.ci_low,
            interval.n,
        )
        assert row["comparisons"] == "2"


def test_summary_csv_of_one_seed_has_empty_cells() -> None:
    record = grid({"shuffle": [0.5], "spectral": [0.6]})
    (first, _) = rows(summary_csv(record, summarise(record)))
    assert (first[f"{MRR}/mean"], first[f"{MRR}/n"]) == ("0.5", "1")
    assert first[f"{MRR}/sd"] == first[f"{MRR}/ci_low"] == first[f"{MRR}/ci_high"] == ""
    for text in (results_csv(record), summary_csv(record, summarise(record)), comparison_csv(compare(record, MRR))):
        assert "nan" not in text.lower()
        assert "none" not in text.lower()


def test_results_csv_leaves_cells_of_non_finite_values_empty() -> None:
    record = study([trial(0, 0, 0, SHUFFLE, 0.5, metrics={MRR: math.nan, "plan/lift": -math.inf})])
    (row,) = rows(results_csv(record))
    assert (row[MRR], row["plan/lift"]) == ("", "")


def test_results_csv_round_trips_hostile_text() -> None:
    name = 'a,"b"\t; <script>'
    record = study([trial(0, 0, 0, OSGD | {"criterion": name}, 0.5, error='x,"y"', status="failed")])
    (row,) = rows(results_csv(record))
    assert (row["sampler.criterion"], row["error"]) == (name, 'x,"y"')


def test_results_csv_tells_null_from_absent() -> None:
    blocks = [{"name": "spectral", "k": None}, SHUFFLE]
    record = study([trial(i, i, 0, block, 0.5) for i, block in enumerate(blocks)])
    assert [row["sampler.k"] for row in rows(results_csv(record))] == ["null", ""]


def test_csv_files_of_an_empty_study_have_headers() -> None:
    assert results_csv(study([])) == "trial_id,status,error,sampler,objective,seed\n"
    assert summary_csv(study([]), []) == "setting,label,sampler,objective\n"
    assert rows(comparison_csv([])) == []
