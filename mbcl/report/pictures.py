"""Matplotlib figures as PNG files and as SVG that inherits colours and fonts from the page around it.

Only the object interface of matplotlib is used, so the global state of pyplot stays untouched.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from mbcl.report.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2329", "#68707b", "#d9dde2"
GOOD, BAD, ACCENT = "#1d7a5a", "#b23a31", "#2f65ad"
"""Colours of verdicts: better, worse, and no difference that matters."""
SERIES = ("#3a73c2", "#d97f1e", "#2b9c78", "#b0549f", "#c4473d", "#8a7a2e", "#4aa8c7", "#7d828c")
LINES = ("-", "--", ":")
"""Line styles for the first, second and third use of a colour."""
_NAMED = {INK: "ink", MUTED: "muted", GRID: "line", GOOD: "good", BAD: "bad", ACCENT: "accent"}
_VARIABLES = {c: f"--{name}" for c, name in _NAMED.items()} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
COLOURS = {variable: colour for colour, variable in _VARIABLES.items()}
"""The colours of the light page by their CSS variables."""
_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # real text: it can be selected, searched and read aloud
    "svg.hashsalt": "mbcl",  # the same figure gives the same file
    "text.parse_math": False,  # names come from users and may contain a dollar sign
    "text.usetex": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
}
_MAX_LABEL = 48


class Values(NamedTuple):
    """The values that a figure shows: a table, and where each row is drawn, as axes with coordinates in their data."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    at: Sequence[tuple[Axes, float, float]] = ()


@dataclass(frozen=True)
class Picture:
    """One figure of the report: ``svg`` to embed in the page, ``svg_file`` as a separate file.

    ``axis`` names what a curve is drawn against if there are figures of the same curve against others. ``columns`` and
    ``rows`` are the table of its values, which figures of one ``table`` share, and ``at`` has the place of each row in
    the SVG, as x and y in turn. A ``wide`` one takes the width of the page.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes
    svg_file: str = ""
    axis: str = ""
    table: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    at: Sequence[float] = ()
    wide: bool = False


NO_VALUES = Values((), ())


def shorten(text: str, length: int = _MAX_LABEL) -> str:
    """Shorten a label to one line that fits beside a plot."""
    text = " ".join(printable(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


@contextmanager
def style() -> Iterator[None]:
    """Apply the matplotlib settings for drawing and saving; restore the process's own settings on exit."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, _RC)), warnings.catch_warnings():
        # Glyphs that the font lacks become boxes in the PNG only; the page's SVG holds real text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def file_name(prefix: str, metric: str) -> str:
    """Return the name of a figure of a metric, which may be any text: only safe characters are kept."""
    return f"{prefix}_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in metric)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure with one plain pair of axes. Call it within :func:`style`."""
    figure, (axes,) = new_row(width, height, 1)
    return figure, axes


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic with plain tick labels; matplotlib's default ``10^k`` needs formulas, which are off."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def new_row(width: float, height: float, count: int, across: int | None = None) -> tuple[Figure, list[Axes]]:
    """Create a figure with plain axes that share the y scale, in rows of ``across``. Call it within :func:`style`."""
    from matplotlib.figure import Figure

    across = across or count
    down = -(-count // across)
    figure = Figure(figsize=(width, down * height), layout="constrained")
    row: list[Axes] = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for axes in row[count:]:
        axes.set_axis_off()
    for axes in row[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelcolor=INK, length=3)
        axes.set_facecolor("none")
        axes.set_axisbelow(True)
    return figure, row[:count]


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Write the names of a chart of horizontal rows above each row, the first one on top, and draw a grid.

    Beside the rows, names would leave no room for them on a phone.
    """
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.5, -0.75)
    for row, label in enumerate(labels):
        axes.text(
            0, row - 0.3, shorten(label), transform=axes.get_yaxis_transform(), va="bottom", color=INK, fontsize=9.5
        )
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def draw_curve(
    axes: Axes, index: int, label: str, x: Sequence[float], mean: Sequence[float], band: tuple[Any, Any] | None
) -> None:
    """Draw the ``index``-th curve, a dot if it is one point, with a band from the lowest to the highest value."""
    colour, dashes = SERIES[index % len(SERIES)], LINES[index // len(SERIES) % len(LINES)]
    if band:
        axes.fill_between(x, *band, color=colour, alpha=0.16, linewidth=0)
    dot = "o" if len(x) == 1 else None
    axes.plot(x, mean, dashes, color=colour, linewidth=1.7, marker=dot, label=shorten(label))


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Add the legend of the curves above the axes."""
    place_legend(figure, *axes.get_legend_handles_labels(), columns, handle_length=1.4)


def place_legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int, *, handle_length: float
) -> None:
    """Add a legend above the axes."""
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        handlelength=handle_length,
        fontsize=8.5,
    )


def render(
    figure: Figure,
    name: str,
    *,
    title: str,
    caption: str,
    alt: str,
    axis: str = "",
    values: Values = NO_VALUES,
    table: str = "",
) -> Picture:
    """Save a figure as PNG and SVG, with its values. Call it within :func:`style`."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # keep the layout of the PNG for the SVG
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(
        name,
        title,
        caption,
        alt,
        _for_page(svg.getvalue(), name),
        png.getvalue(),
        svg.getvalue(),
        axis,
        table or name,
        values.columns,
        [[_rounded(cell) for cell in row] for row in values.rows],
        _places(figure, values),
    )


def _rounded(cell: Any) -> Any:
    """Round a number to the digits of float32; none that is not finite."""
    if not isinstance(cell, float):
        return cell
    return float(f"{cell:.7g}") if math.isfinite(cell) else None


def _places(figure: Figure, values: Values) -> list[float]:
    """Return where each row is drawn, in points from the upper left corner, as in the SVG."""
    scale, height = 72 / figure.dpi, figure.get_figheight() * 72
    places = []
    for axes, x, y in values.at:
        right, up = axes.transData.transform((x, y)) * scale
        places += [round(float(right), 1), round(float(height - up), 1)]
    return places


def _for_page(svg: str, name: str) -> str:
    """Adapt SVG to HTML: no prologue, no namespaces, ids unique to the figure, colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # no text, which has values
    svg = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
