"""``mbcl report``: the report of a study again, or the gains of several studies together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError, pluralize

if TYPE_CHECKING:
    from mbcl.study.record import StudyRecord


def add_report(commands: Any) -> None:
    """Add the subcommand."""
    report = commands.add_parser(
        "report",
        help="write the report of a study again, or compare settings over several studies",
        description="With one study, write its tables and its report again. With several, print each setting's "
        "interquartile mean of the gains over the baseline, with data sets as tasks, and write nothing.",
    )
    report.add_argument("studies", metavar="DIR", nargs="*", help="folder of a study, for example results/samplers")
    report.option("--results", "DIR", "the same as one DIR")
    report.plugins(note=" that the study used, whose defaults the names of settings leave out")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from mbcl.io.store import open_store
    from mbcl.report import write
    from mbcl.study.record import read_study

    folders = [*arguments.studies, *([arguments.results] if arguments.results else [])]
    if not folders:
        raise ConfigError("report: give the folder of a study, for example results/samplers")
    stores = [open_store(folder) for folder in folders]
    studies = [read_study(store) for store in stores]
    if len(studies) == 1:
        write(stores[0], studies[0])
        sys.stdout.write(f"{folders[0]}/report.html\n")
    else:
        sys.stdout.write("\n".join(_lines(studies)) + "\n")
    return 0


def _lines(studies: list[StudyRecord]) -> Iterator[str]:
    from mbcl.console import align_columns
    from mbcl.study.across import gains_across

    metric, gains = gains_across(studies)
    yield f"{metric}: gain over the baseline, as a share of the baseline's mean, in {pluralize(len(studies), 'study')}"
    header = ["setting", "IQM [95 % interval]", "P(improvement)", "pairs", *(study.name for study in studies)]
    rows = [
        [
            gain.label,
            f"{gain.iqm:+.4f} [{gain.ci_low:+.4f}, {gain.ci_high:+.4f}]",
            f"{gain.improvement:.2f}",
            str(gain.n),
            *(f"{mean:+.4f}" for mean in gain.means),
        ]
        for gain in gains
    ]
    yield from align_columns([header, *rows], 1)
    yield (
        "IQM: mean of the middle half of all gains; interval: bootstrap of pairs of seeds within each study. They are "
        "not corrected for the number of settings."
    )
