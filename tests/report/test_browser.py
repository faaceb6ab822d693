"""The page in a real browser: nothing is fetched, no error, and its script does what it should."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from report.browser import CHROMIUM, NAMES, Browser, browser
from report.studies import EIGHT, grid, partial, write_histories

from mbcl.io.store import LocalStore
from mbcl.report import write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH")

ROWS = "[...document.querySelectorAll('{} tbody tr')].filter(row => !row.hidden).map(row => row.cells[{}].textContent)"
TRIALS = "#trials ~ .scroll table"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_histories(LocalStore(folder), grid(EIGHT))
    write(LocalStore(folder), grid(EIGHT))
    return folder / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_loads_without_an_error_and_fetches_nothing(tab: Browser, full: Path, width: int, dark: bool) -> None:
    tab.requests.clear()
    tab.open(full, width=width, dark=dark)
    assert tab.problems == []
    assert tab.requests == [full.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") <= width, "nothing but tables scrolls sideways"
    assert tab.run("document.querySelector('.headline').getBoundingClientRect().bottom") < 900, "on the first screen"


def test_a_click_on_a_head_sorts(tab: Browser, full: Path) -> None:
    tab.open(full)
    click = "document.querySelectorAll('#results ~ .scroll .sort')[{}].click()"
    settings = ROWS.format("#results ~ .scroll table", 0)
    given = tab.run(settings)
    assert [text.split()[0] for text in given] == ["shufflebaseline", "osgd", "spectral"]
    tab.run(click.format(2))  # means, the highest first
    assert [text.split()[0] for text in tab.run(settings)] == ["spectral", "osgd", "shufflebaseline"]
    assert tab.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    tab.run(click.format(2))
    assert [text.split()[0] for text in tab.run(settings)] == ["shufflebaseline", "osgd", "spectral"]
    tab.run(click.format(0))  # names
    assert [text.split()[0] for text in tab.run(settings)] == ["osgd", "shufflebaseline", "spectral"]
    assert tab.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_words_filter_rows(tab: Browser, full: Path) -> None:
    tab.open(full)
    assert len(tab.run(ROWS.format(TRIALS, 0))) == 24
    filter_ = "{{ const f = document.querySelector('#trials ~ .filter input'); f.value = '{}';"
    filter_ += " f.dispatchEvent(new Event('input')); }}"
    tab.run(filter_.format("spectral 003"))
    assert tab.run(ROWS.format(TRIALS, 0)) == []
    tab.run(filter_.format("SPECTRAL 017"))
    assert tab.run(ROWS.format(TRIALS, 0)) == ["017-aa"]
    assert tab.run("document.querySelector('#trials ~ .filter output').textContent") == "1 of 24"


def test_a_reason_stays_below_its_trial(tab: Browser, tmp_path: Path) -> None:
    write(LocalStore(tmp_path), partial())
    tab.open(tmp_path / "report.html")
    for _ in range(2):
        tab.run("document.querySelectorAll('#trials ~ .scroll .sort')[3].click()")
        rows = tab.run(f"[...document.querySelectorAll('{TRIALS} tbody tr')].map(row => row.textContent)")
        at = next(index for index, text in enumerate(rows) if "the loss is nan" in text)
        assert "failed" in rows[at - 1]
    assert tab.problems == []


def test_curves_change_their_axis(tab: Browser, full: Path) -> None:
    tab.open(full)
    shown = "[...document.querySelectorAll('.figures figure')].filter(f => f.offsetParent).map(f => f.dataset.name)"
    by_epochs = tab.run(shown)
    tab.run("document.querySelector('#against-passes').click()")
    by_passes = tab.run(shown)
    assert "curve_train_loss" in by_epochs
    assert "curve_train_loss_by_passes" not in by_epochs
    assert {name.removesuffix("_by_passes") for name in by_passes} == set(by_epochs)
    assert "curve_train_loss_by_passes" in by_passes


def test_the_value_under_the_pointer_is_shown(tab: Browser, full: Path) -> None:
    tab.open(full)
    place = """{
      const figure = document.querySelector('.first figure');
      const [x, y] = figure.dataset.at.split(' ').map(Number);
      const svg = figure.querySelector('svg');
      const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
      [point.x, point.y];
    }"""
    x, y = tab.run(place)
    tab.move_to(x + 2, y)
    text = tab.run("document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent")
    assert text.startswith("setting osgd (k=20, q=5)seed meandifference 0.000125")
    assert tab.run("document.querySelectorAll('.ring').length") == 1
    tab.move_to(2, 2)
    assert tab.run("document.querySelector('.tip').hidden")


def test_a_figure_and_its_values_are_saved_as_files(tab: Browser, full: Path) -> None:
    tab.open(full)
    tab.run("""{
      window.saved = [];
      URL.createObjectURL = (blob) => { window.saved.push(blob); return 'blob:none'; };
      HTMLAnchorElement.prototype.click = function () { window.names = [...(window.names ?? []), this.download]; };
      for (const button of document.querySelectorAll('.first .save button')) button.click();
    }""")
    assert tab.run("window.names") == ["difference_retrieval_mrr.svg", "difference_retrieval_mrr.csv"]
    svg, csv = tab.run("Promise.all(window.saved.map(blob => blob.text()))")
    assert svg.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    assert "var(" not in svg
    assert "#1d7a5a" in svg, "the colour of better on the light page"
    lines = csv.splitlines()
    assert lines[0] == "setting,seed,difference,ci_low,ci_high"
    assert lines[1].startswith('"osgd (k=20, q=5)",mean,0.000125,')
    assert len(lines) == 1 + 2 * 9
    assert tab.problems == []


def test_print_shows_every_column(tab: Browser, full: Path) -> None:
    tab.open(full, width=720, height=1000)  # about the width of a sheet
    tab.call("Emulation.setEmulatedMedia", media="print")
    outside = """[...document.querySelectorAll('table')].filter(table => table.offsetParent
      && table.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
    assert tab.run(outside) == 0
    assert tab.run("document.querySelectorAll('.scroll').length") > 0
    assert tab.run("[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === 'visible')")
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.pdf().startswith(b"%PDF")
