"""``mbcl report`` and ``mbcl show``: the report of a study again, its table, or the gains of several studies."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbcl.errors import ConfigError, MbclError
from mbcl.io.files import atomic_write
from mbcl.io.store import is_uri

if TYPE_CHECKING:
    from mbcl.study.record import StudyRecord


def add_report(commands: Any) -> None:
    """Add the subcommands."""
    report = commands.add_parser(
        "report",
        help="write the report of a study again, or compare settings over several studies",
        description="With one study, write its tables and its report again. With several, print each setting's "
        "interquartile mean of the gains over the baseline, with data sets as tasks, and write one page about all of "
        "them, finished or not. With --markdown, write a document about them instead of the pages.",
    )
    report.add_argument("studies", metavar="DIR", nargs="*", help="folder of a study, for example results/samplers")
    report.option("--results", "DIR", "the same as one DIR")
    report.option("--out", "FILE", "a copy of the page (of several studies the page, studies.html by default)")
    figures = "its figures replace the SVG files of the folder NAME_figures beside it"
    report.option("--markdown", "FILE", f"write a Markdown document instead; {figures}")
    report.flag("--open", "open the page in the browser")
    report.plugins(note=" that the study used, whose defaults the names of settings leave out")
    report.set_defaults(run=_report)
    show = commands.add_parser(
        "show",
        help="print the table of a study",
        description="Print the table of a study: means "
        "with 95 % intervals over the finished seeds, and why trials failed. Nothing is written.",
    )
    show.add_argument("study", metavar="DIR", help="folder of a study, for example results/samplers")
    show.plugins(note=" that the study used, whose defaults the names of settings leave out")
    show.set_defaults(run=_show)


def _report(arguments: argparse.Namespace) -> int:
    from mbcl.io.store import open_store
    from mbcl.report import several_page, write, write_document
    from mbcl.study.histories import read_histories
    from mbcl.study.record import read_study

    folders = [*arguments.studies, *([arguments.results] if arguments.results else [])]
    if not folders:
        raise ConfigError("report: give the folder of a study, for example results/samplers")
    stores = [open_store(folder) for folder in folders]
    for number, store in enumerate(stores):
        if store.uri in (other.uri for other in stores[:number]):  # its seeds would count twice
            raise ConfigError(f"report: {store.uri} is given twice; give every study once")
    if arguments.out and arguments.markdown:
        raise ConfigError("--out and --markdown: choose one; each is written instead of the other")
    option, file = ("--markdown", arguments.markdown) if arguments.markdown else ("--out", arguments.out)
    file = file or ("studies.html" if len(stores) > 1 else "")
    if file and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
        raise ConfigError(f"{option}: expected a file in a folder that exists, found {file}")
    studies = [read_study(store) for store in stores]
    page = shown = file
    names = [folder.rstrip("/") for folder in folders]
    if arguments.markdown:
        histories = [read_histories(store, study) for store, study in zip(stores, studies, strict=True)]
        write_document(Path(page), names, studies, histories)
    elif len(studies) == 1:
        write(stores[0], studies[0])
        if file:
            _write_page(file, stores[0].read_bytes("report.html"))
        else:
            page, shown = f"{stores[0].uri}/report.html", f"{folders[0]}/report.html"
    else:
        _write_page(file, several_page(names, studies).encode())
        sys.stdout.write("\n".join(_lines(studies)) + "\n")
    sys.stdout.write(f"{shown}\n")
    if arguments.open:
        _open(page)
    return 0


def _write_page(file: str, content: bytes) -> None:
    with atomic_write(Path(file)) as stream:
        stream.write(content)


def _show(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mbcl.console.study_table import PLAIN_WIDTH, below_table, study_table
    from mbcl.io.store import open_store
    from mbcl.study.record import read_study

    study = read_study(open_store(arguments.study))
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = PLAIN_WIDTH
    screen.print(study_table(study))
    for line in below_table(study):
        screen.print(line, markup=False, soft_wrap=True)
    if study.efficiency is not None:
        screen.print(f"efficiency: {study.efficiency.describe()}", markup=False, soft_wrap=True)
    return 0


def _open(page: str) -> None:
    """Open a local page in the browser.

    Raises:
        ConfigError: if it is not on this machine.
        MbclError: if there is no browser.
    """
    if is_uri(page):
        raise ConfigError(f"--open: {page} is not on this machine")
    if not webbrowser.open(Path(page).absolute().as_uri()):
        raise MbclError(f"--open: no browser was found; open {page} yourself")


def _lines(studies: list[StudyRecord]) -> Iterator[str]:
    from mbcl.console import align_columns
    from mbcl.study.across import gains_across

    try:
        metric, gains = gains_across(studies)
    except ConfigError as error:
        yield f"no common gains: {error}"
        return
    yield f"{metric}: gain over the baseline, as a share of the baseline's mean, in {len(studies)} studies"
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
