"""Writing of a study's report into its results folder."""

from __future__ import annotations

from pathlib import Path

from mbcl.io.store import Store, write_text
from mbcl.report.answer import answer
from mbcl.report.batches import read_batches
from mbcl.report.draws import describe_draws, draws_csv, read_draws
from mbcl.report.figures import draw
from mbcl.report.page import MAX_LOGS, page
from mbcl.report.tables import comparison_csv, results_csv, summary_csv
from mbcl.study.comparisons import compare
from mbcl.study.histories import read_histories
from mbcl.study.record import ERROR_FILE, StudyRecord
from mbcl.study.statistics import compared_metrics, primary_metrics, summarise

LOG_LINES, LOG_CHARACTERS = 20, 3000


def write(store: Store, study: StudyRecord) -> str:
    """Write tables, plots and page into the results folder; unfinished and failed trials are shown as such.

    The trials' ``metrics.jsonl`` are read from the folder if they exist.

    Returns:
        The answer of the page, in a sentence.
    """
    summaries = summarise(study)
    comparisons = [comparison for metric in compared_metrics(study) for comparison in compare(study, metric)]
    # Tables first: scripts wait for them, and they need only the study record.
    write_text(store, "results.csv", results_csv(study))
    write_text(store, "summary.csv", summary_csv(study, summaries))
    write_text(store, "comparison.csv", comparison_csv(comparisons))
    draws = read_draws(store, study)
    if draws:
        write_text(store, "draws.csv", draws_csv(draws))
    elif store.exists("draws.csv") and any(store.exists(f"trials/{key}/evaluation.json") for key in study.trials):
        store.delete("draws.csv")  # of an earlier evaluation; a published study has it without its trials
    histories = read_histories(store, study)
    pictures = draw(study, histories)
    for picture in pictures:
        store.write_bytes(f"plots/{picture.name}.png", picture.png)
    # Figures of an earlier report for which this one has no data are stale.
    for name in set(store.list("plots")) - {f"{picture.name}.png" for picture in pictures}:
        if name.endswith(".png"):
            store.delete(f"plots/{name}")
    try:
        space = store.read_bytes("space.yaml").decode("utf-8", errors="replace")
    except FileNotFoundError:
        space = ""
    headline = next(iter(primary_metrics(study)), "")
    verdict = answer(study, summaries, comparisons, headline or None)
    text = page(
        study,
        verdict,
        summaries,
        comparisons,
        pictures,
        histories,
        space,
        location_of(store),
        draws=describe_draws(draws, headline),
        logs=_ends_of_logs(store, study),
        batches=read_batches(store, study),
    )
    write_text(store, "report.html", text)
    return verdict.headline


def location_of(store: Store) -> str:
    """Return a store's folder as commands take it: relative to the working directory where it lies in it."""
    location, here = store.uri.rstrip("/"), f"{Path.cwd()}/"
    return location.removeprefix(here)


def _ends_of_logs(store: Store, study: StudyRecord) -> dict[str, str]:
    """Return the ends of the logs of failed trials by their names."""
    logs = {}
    for key in [key for key, trial in study.ordered().items() if trial.status == "failed"][:MAX_LOGS]:
        try:
            content = store.read_bytes(f"trials/{key}/{ERROR_FILE}")
        except FileNotFoundError:
            continue
        logs[key] = "\n".join(content.decode("utf-8", errors="replace").splitlines()[-LOG_LINES:])[-LOG_CHARACTERS:]
    return logs
