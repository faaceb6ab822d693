"""Matplotlib figures as PNG files and as SVG that takes its colours and fonts from the page it stands in.

Only the object interface of matplotlib is used, so that nothing is left behind in a process that plots too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mbcl.report.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2329", "#68707b", "#d9dde2"
SERIES = ("#3a73c2", "#d97f1e", "#2b9c78", "#b0549f", "#c4473d", "#8a7a2e", "#4aa8c7", "#7d828c")
LINES = ("-", "--", ":")
"""Of the first, second and third time that a colour is used."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # real text: it can be selected, searched and read aloud
    "svg.hashsalt": "mbcl",  # the same figure gives the same file
    "text.parse_math": False,  # names come from users; a dollar sign is no formula
    "text.usetex": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
}
_LONGEST = 48


@dataclass(frozen=True)
class Picture:
    """One figure of the report: ``svg`` for the page that it stands in, ``svg_file`` as a file of its own."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes
    svg_file: str = ""


def shorten(text: str) -> str:
    """A label that fits beside a plot."""
    text = " ".join(printable(text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@contextmanager
def style() -> Iterator[None]:
    """The settings that figures are made and saved under; the process's own come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, _RC)), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes in the PNG; the page shows it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one plain pair of axes; inside :func:`style` only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _plain(figure.add_subplot())


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with ticks in plain numbers: the style of all figures reads no formulas."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def new_row(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """An empty figure with plain pairs of axes beside each other, one scale up; inside :func:`style` only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [_plain(axes) for axes in figure.subplots(1, count, sharey=True)]


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    return axes


def render(figure: Figure, name: str, *, title: str, caption: str, alt: str) -> Picture:
    """Save a figure in both forms; inside :func:`style` only."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # what was laid out for one form holds for the other
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name, title, caption, alt, _for_page(svg.getvalue(), name), png.getvalue(), svg.getvalue())


def _for_page(svg: str, name: str) -> str:
    """SVG for use inside HTML: no prologue, no addresses, ids that no other figure has, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
