"""One page about several studies, finished or not: the answer of each, their settings side by side, common gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mbcl.errors import ConfigError
from mbcl.report import pictures
from mbcl.report.answer import Verdict, status_counts, verdict_of
from mbcl.report.figures import chosen_settings
from mbcl.report.gain_figures import draw_gains_of_several
from mbcl.report.pictures import Picture
from mbcl.report.row_figures import draw_rows
from mbcl.report.templates import render_page
from mbcl.study.across import Gain, gains_across
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import Estimate, primary_metrics, summarise


@dataclass(frozen=True)
class StudyPart:
    """What the page says of one study; ``metric`` is its headline, empty if nothing has been measured."""

    folder: str
    study: StudyRecord
    metric: str
    counts: dict[str, int]
    answer: Verdict
    figure: Picture | None


def several_page(folders: Sequence[str], studies: Sequence[StudyRecord]) -> str:
    """Render the page of several studies, with their folders as commands and links take them."""
    with pictures.style():
        parts = [
            _part(number, folder, study) for number, (folder, study) in enumerate(zip(folders, studies, strict=True))
        ]
        relations = draw_gains_of_several(dict(zip(names_of(folders, studies), studies, strict=True)))
    gains, missing = _gains(studies)
    return render_page(
        "several.html",
        {
            "parts": parts,
            "rows": _rows(parts),
            "gains": gains,
            "missing": missing,
            "relations": relations,
            "figures": [*relations, *(part.figure for part in parts if part.figure)],
        },
    )


def names_of(folders: Sequence[str], studies: Sequence[StudyRecord]) -> list[str]:
    """Return a name for every study that no other one has: its own, or its folder where names are alike."""
    counts = Counter(study.name for study in studies)
    return [study.name if counts[study.name] == 1 else folder for folder, study in zip(folders, studies, strict=True)]


def _part(number: int, folder: str, study: StudyRecord) -> StudyPart:
    metric = next(iter(primary_metrics(study)), "")
    settings, note = chosen_settings(study)
    drawn = draw_rows(study, settings, note, prefix=f"study_{number}_")
    return StudyPart(folder, study, metric, status_counts(study), verdict_of(study), drawn[0] if drawn else None)


def _rows(parts: Sequence[StudyPart]) -> dict[str, list[Estimate | None]]:
    """Return for each label the estimate of each study on its own headline, in the order in which labels appear."""
    rows: dict[str, list[Estimate | None]] = {}
    for index, part in enumerate(parts):
        for summary in summarise(part.study):
            if summary.stage != "tuning":
                cells = rows.setdefault(summary.label, [None] * len(parts))
                cells[index] = summary.metrics.get(part.metric)
    return rows


def _gains(studies: Sequence[StudyRecord]) -> tuple[list[Gain], str]:
    """Return the gains of all studies together, or why there are none."""
    try:
        return gains_across(studies)[1], ""
    except ConfigError as error:
        return [], str(error)
