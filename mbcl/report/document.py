"""Studies as a Markdown document with figures: what the pages say, to stand in a repository among prose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from mbcl.errors import ConfigError
from mbcl.io.files import atomic_write
from mbcl.report import pictures
from mbcl.report.document_section import section
from mbcl.report.figures import chosen_settings
from mbcl.report.gain_figures import draw_gains, draw_gains_of_several
from mbcl.report.markdown import code, escaped, svg_of, table
from mbcl.report.pictures import Picture
from mbcl.report.row_figures import draw_rows
from mbcl.report.several import names_of
from mbcl.report.wording import number
from mbcl.study.across import gains_across
from mbcl.study.histories import History
from mbcl.study.record import StudyRecord


def write_document(
    path: Path, folders: Sequence[str], studies: Sequence[StudyRecord], histories: Sequence[Mapping[int, History]]
) -> None:
    """Write a document about studies, and its figures into the folder ``STEM_figures`` beside it.

    Other SVG files in that folder are removed: they are of an earlier document. The results folders stay as they are.

    Args:
        path: the document, in an existing folder.
        folders: the results folders, as commands take them.
        studies: their records.
        histories: the histories of their trials.
    """
    place = path.with_name(f"{path.stem}_figures")
    names = names_of(folders, studies)
    files: dict[str, bytes] = {}
    parts: list[str] = []
    with pictures.style():
        if len(studies) > 1:
            parts.append(_together(studies, names))
            relations = draw_gains_of_several(dict(zip(names, studies, strict=True)))
            # Those of one study stand in its section.
            common = [picture for picture in relations if len({study for study, *_ in picture.rows}) > 1]
            parts += [_figure(picture, "studies", place.name, files) for picture in common]
        for name, folder, study, rows in zip(names, folders, studies, histories, strict=True):
            parts.append(f"{'##' if len(studies) > 1 else '#'} {escaped(name)}\n")
            parts.append(section(folder, study, rows))
            parts += [_figure(picture, name, place.name, files) for picture in _pictures(study)]
    place.mkdir(exist_ok=True)
    for file, content in files.items():
        with atomic_write(place / file) as stream:
            stream.write(content)
    for stale in sorted(set(place.glob("*.svg")) - {place / file for file in files}):
        stale.unlink()
    with atomic_write(path) as stream:
        stream.write("\n".join(parts).encode())


def _pictures(study: StudyRecord) -> list[Picture]:
    """Draw the differences from the baseline, and the gains against keys and metrics of the batches."""
    settings, note = chosen_settings(study)
    differences = [picture for picture in draw_rows(study, settings, note) if picture.name.startswith("difference")]
    return [*differences, *draw_gains(study)]


def _figure(picture: Picture, prefix: str, folder: str, files: dict[str, bytes]) -> str:
    """Return a figure with its caption, and add its file to the files of the folder."""
    stem = re.sub(r"[^A-Za-z0-9.-]", "_", f"{prefix}_{picture.name}").lstrip(".")
    number = 1
    while (file := f"{stem}{'' if number == 1 else f'_{number}'}.svg") in files:
        number += 1
    files[file] = svg_of(picture)
    return f"![{escaped(picture.title)}]({quote(folder)}/{quote(file)})\n\n{escaped(picture.caption)}\n"


def _together(studies: Sequence[StudyRecord], names: Sequence[str]) -> str:
    """Return the gains of all studies together, or why there are none."""
    lines = [f"# {len(studies)} studies\n"]
    try:
        metric, gains = gains_across(studies)
    except ConfigError as error:
        return "\n".join([*lines, f"The studies have no common gain: {escaped(str(error))}.\n"])
    rows = []
    for gain in gains:
        ends = (gain.ci_low, gain.ci_high, gain.iqm)
        low, high, middle = (number(end, signed=True, beside=ends) for end in ends)
        means = [number(mean, signed=True, beside=gain.means) for mean in gain.means]
        names_of_both = [escaped(gain.label), escaped(gain.baseline_label)]
        rows.append([*names_of_both, f"{middle} ({low} to {high})", str(gain.n), *means])
    head = ["setting", "baseline", "gain (95 % interval)", "pairs a study", *map(escaped, names)]
    lines.append(table(head, rows, range(2, len(head))))
    lines.append(
        f"Gain in {code(metric)} over the baseline, as a share of its mean: the interquartile mean over the studies "
        "with the 95 % interval of a bootstrap of pairs of seeds within each study, not corrected for the number of "
        "settings.\n"
    )
    return "\n".join(lines)
