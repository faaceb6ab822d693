import base64
import csv
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.studies import (
    EIGHT,
    FULL,
    MRR,
    SHUFFLE,
    SPECTRAL,
    TOP1,
    grid,
    partial,
    raced,
    study,
    trial,
    write_histories,
)

from mbcl.io.store import LocalStore, open_store
from mbcl.report import write
from mbcl.report.answer import answer
from mbcl.report.templates import resource
from mbcl.study.comparisons import compare
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import primary_metrics, summarise

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)> $\\frac{ & \'" --> ]]> \x00\u202e {{ 7*7 }} 日本'


class Page(HTMLParser):
    """Collects the tags, attributes, ids and text of a page."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def script_of(text: str) -> str:
    """Return the script that the page runs; the others are data."""
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    return script


def write_report(folder: Path, record: StudyRecord, *, histories: bool = True) -> str:
    store = LocalStore(folder)
    if histories:
        write_histories(store, record)
    write(store, record)
    return (folder / "report.html").read_text(encoding="utf-8")


def check_self_contained(text: str) -> Page:
    page = Page(text)
    assert not re.search(r"https?:|@import|<\?xml|<!--", text, flags=re.IGNORECASE)
    assert {"link", "iframe", "object", "base"}.isdisjoint(page.tags)
    assert page.tags.count("script") == sum((tag, key) == ("script", "type") for tag, key, _ in page.attributes) + 1
    assert script_of(text) == resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script_of(text).encode()).digest()).decode()
    assert f'script-src &#39;sha256-{digest}&#39;"' in text, "the only script that the page may run"
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        assert key not in ("srcset", "action", "data"), (tag, key)
        assert key != "src" or value.startswith("data:image/png;base64,"), (tag, key, value)
        assert (tag, key) != ("script", "type") or value == "application/json"
        if key.endswith("href") and not (tag == "image" and value.startswith("data:image/png;base64,")):
            assert value.startswith("#"), (tag, value)
            assert value[1:] in page.ids
    assert all(reference in page.ids for reference in re.findall(r"url\(#([^)]*)\)", text))
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"the loss is nan|None of", "", page.text))
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    LocalStore(folder).write_bytes("space.yaml", b"name: <b>samplers</b>\n")
    write_report(folder, grid(FULL))
    return folder


def test_report_of_a_finished_study(full: Path) -> None:
    page = check_self_contained((full / "report.html").read_text(encoding="utf-8"))
    assert "Undecided: no difference from shuffle on retrieval/mrr is shown" in page.text
    assert "3 pairs of seeds cannot show any difference at 0.05" in page.text
    assert "is better than" not in page.text
    assert "name: <b>samplers</b>" in page.text
    command = f"python run_ray.py --space {full}/space.yaml --results-dir {full.parent} --name {full.name}-again"
    assert command in page.text
    assert "--resume" not in page.text
    assert page.tags.count("svg") == page.tags.count("figure") == len(list((full / "plots").iterdir()))
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("div", "aria-label")]
    assert len(labels) == page.tags.count("svg")
    assert all(len(label) > 30 for label in labels)


def test_report_claims_differences_and_equivalence(tmp_path: Path) -> None:
    page = check_self_contained(write_report(tmp_path, grid(EIGHT)))
    assert "spectral (k=4) is better than shuffle on retrieval/mrr by 0.0500" in page.text
    assert "No difference larger than 0.01 from shuffle on retrieval/mrr: osgd (k=20, q=5)" in page.text
    assert re.search(r"8 pairs of seeds show a difference of 0.001\d? with 80\u00a0% power", page.text)
    assert "than shuffle on retrieval/top1" not in page.text, "other metrics are exploratory"


def test_report_of_a_search_gives_no_interval_of_a_setting(tmp_path: Path) -> None:
    page = check_self_contained(write_report(tmp_path, grid(EIGHT, searched=True, baseline={})))
    assert "The highest mean retrieval/mrr is 0.8505, for spectral (k=4) (n=8)." in page.text
    assert "chosen by the very runs that measured it" in page.text
    assert not re.search(r"0\.8\d+ to 0\.8\d+", page.text)


def test_report_has_every_mean_and_interval(full: Path) -> None:
    page = Page((full / "report.html").read_text(encoding="utf-8"))
    for summary in summarise(grid(FULL)):
        interval = summary.metrics[MRR]
        assert f"{interval.mean:.4f}" in page.text
        assert f"{interval.ci_low:.4f} to {interval.ci_high:.4f}" in page.text


CURVE_FILES = ("curve_val_retrieval_mrr", "curve_train_loss", "curve_plan_lift")


def test_report_plots_are_png_files(full: Path) -> None:
    names = {path.name for path in (full / "plots").iterdir()}
    assert names == {
        "difference_retrieval_mrr.png",
        "final_retrieval_mrr.png",
        *(f"{curve}{axis}.png" for curve in CURVE_FILES for axis in ("", "_by_images", "_by_passes", "_by_seconds")),
        "time.png",
    }
    for path in (full / "plots").iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(content) > 4000


def test_report_of_the_same_study_has_the_same_bytes(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / full.name
    LocalStore(folder).write_bytes("space.yaml", b"name: <b>samplers</b>\n")
    pages = []
    for each in (folder, full):
        monkeypatch.chdir(each.parent)  # the commands on the page have the folder as seen from there
        pages.append(write_report(each, grid(FULL)))
    assert pages[0] == pages[1]
    for name in ("results.csv", "summary.csv", "comparison.csv", "plots/time.png"):
        assert (folder / name).read_bytes() == (full / name).read_bytes()


def test_report_compares_every_evaluation(tmp_path: Path) -> None:
    record = grid(FULL)
    for each in record.trials.values():
        value = each.metrics[MRR] or 0.0
        each.metrics |= {"knn/top1": value / 3, "corrupted/clean/fog/3/top1": value / 4, "val/retrieval/mrr": value}
    write_report(tmp_path / "study", record)
    with (tmp_path / "study" / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    compared = dict.fromkeys(row["metric"] for row in rows)
    other = ["retrieval/u2v/median_rank", "knn/top1", "corrupted/clean/fog/3/top1"]
    assert list(compared) == [MRR, TOP1, *other]
    by_knn = [row for row in rows if row["metric"] == "knn/top1" and row["setting"] == "2"]
    assert float(by_knn[0]["difference"]) == pytest.approx((0.05 + 0.06 + 0.05) / 9)
    assert (by_knn[0]["verdict"], by_knn[0]["comparisons"]) == ("exploratory", "0")
    page = Page((tmp_path / "study" / "report.html").read_text(encoding="utf-8")).text
    assert "On all other metrics: exploratory" in page


def test_report_of_a_partial_study(tmp_path: Path) -> None:
    page = check_self_contained(write_report(tmp_path, partial()))
    assert "Of 9 trials, 1 stopped, 1 failed and 2 pending" in page.text
    assert "so the answer may still change" in page.text
    assert "the loss is nan" in page.text
    assert f"--space {tmp_path}/space.yaml --results-dir {tmp_path.parent} --name {tmp_path.name} --resume" in page.text
    assert " is better than" not in page.text


def test_report_explains_stopped_trials(tmp_path: Path) -> None:
    write_histories(LocalStore(tmp_path), raced(), epochs=2)
    page = check_self_contained(write_report(tmp_path, raced()))
    assert "Of 9 trials, 3 stopped; only finished trials count here." in page.text
    assert "asha stopped 1 setting early, which have no final metrics" in page.text
    assert "picked by val/retrieval/mrr on seed 0, so what they reach there is flattered" in page.text
    assert "stopped by asha after 2 of 4 epochs (val/retrieval/mrr 0.2500)" in page.text
    assert page.text.count("not begun: asha stopped this setting with seed 0") == 2
    assert "Stopped early, where the line ends: osgd" in page.text
    assert "--resume" not in page.text, "a stopped trial needs no resume"


def test_report_removes_stale_plots(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write_bytes("plots/final_old.png", b"old")
    write(store, grid({"shuffle": [0.5]}))
    assert store.list("plots") == ["final_retrieval_mrr.png"]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (study([]), "This study has no trials."),
        (grid({"shuffle": [None, None]}), "No trial has finished, so there is no answer yet (2 pending)."),
        (study([trial(0, 0, 0, error="boom", status="failed")]), "no answer yet (1 failed)"),
        (grid({"shuffle": [0.5], "spectral": [0.9]}), "Nothing can be concluded yet"),
        (grid({"shuffle": [0.5]}), "shuffle reaches retrieval/mrr 0.5000 (one seed, so no interval)"),
        (grid(FULL, baseline={}), "The study names no baseline"),
        (grid(FULL, baseline={"sampler": "gone"}), "singles out no setting"),
        (study([trial(0, 0, 0, SHUFFLE, 0.5, metrics={})]), "measured no final metric"),
    ],
    ids=["empty", "pending", "failed", "one seed", "one trial", "no baseline", "lost baseline", "no metric"],
)
def test_report_of_a_study_with_few_results(tmp_path: Path, record: StudyRecord, text: str) -> None:
    page = check_self_contained(write_report(tmp_path, record, histories=False))
    assert text in page.text
    assert "is better than" not in page.text


def test_report_escapes_hostile_names_and_errors(tmp_path: Path) -> None:
    trials = [
        trial(0, 0, 0, {"name": HOSTILE}, 0.5),
        trial(1, 0, 1, {"name": HOSTILE}, 0.6),
        trial(2, 1, 0, {"name": HOSTILE, HOSTILE: HOSTILE}, 0.7, metrics={HOSTILE: 1.0, MRR: 0.5}),
        trial(3, 1, 1, {"name": "<b>"}, error=HOSTILE, status="failed"),
    ]
    record = study(trials, name=HOSTILE, question=HOSTILE, baseline={"sampler": HOSTILE}, versions={HOSTILE: HOSTILE})
    record.trials[HOSTILE.replace("/", "").replace("\x00", "")] = trial(4, 2, 0, SHUFFLE, 0.5)
    store = LocalStore(tmp_path)
    write(store, record)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = check_self_contained(text)
    assert page.text.count('<script>alert("1")</script>') > 5
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }}" in page.text


def test_report_draws_some_of_many_settings(tmp_path: Path) -> None:
    blocks = [SHUFFLE, *(SPECTRAL | {"k": k} for k in range(1, 40))]
    trials = [trial(i, i, 0, block, i / 100) for i, block in enumerate(blocks)]
    page = check_self_contained(write_report(tmp_path, study(trials), histories=False))
    assert "24 of 40 settings" in page.text
    assert "spectral (k=39)" in page.text


def test_report_is_written_to_a_uri(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(open_store(f"file://{tmp_path}/bucket"), grid({"shuffle": [0.5, 0.6], "osgd": [0.5, 0.7]}))
    assert (tmp_path / "bucket" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "bucket" / "plots" / "final_retrieval_mrr.png").is_file()


def test_answer_claims_only_what_holms_correction_keeps() -> None:
    # Six pairs give p = 1/32 at best, and 1/16 after Holm's correction for two comparisons.
    record = grid({name: values[:6] for name, values in EIGHT.items()})
    comparisons = compare(record, MRR)
    assert (comparisons[1].p, comparisons[1].p_holm, comparisons[1].verdict) == (1 / 32, 1 / 16, "undecided")
    assert comparisons[1].excludes_zero
    report = answer(record, summarise(record), comparisons, MRR)
    assert "better" not in report.headline
    text = " ".join(report.details)
    assert "which excludes 0, but p (Holm) is 0.062" in text
    assert "corrected for 2 comparisons, is at least 0.0625; 7 pairs are the fewest" in text


def test_answer_makes_several_claims() -> None:
    record = grid(EIGHT | {"osgd": [value - 0.3 for value in EIGHT["spectral"]]})
    report = answer(record, summarise(record), compare(record, MRR), MRR)
    assert "spectral (k=4) is better than shuffle" in report.headline
    assert "osgd (k=20, q=5) is worse than shuffle" in report.headline
    record = grid(EIGHT | {"osgd": [value + 0.1 for value in EIGHT["spectral"]]})
    report = answer(record, summarise(record), compare(record, MRR), MRR)
    assert report.headline.startswith("Better than shuffle on retrieval/mrr: osgd (k=20, q=5) by 0.1500")


def test_report_import_does_not_load_matplotlib() -> None:
    code = "import sys, mbcl.report; sys.exit(len({'matplotlib', 'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_report_leaves_matplotlibs_settings_unchanged(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    before = dict(matplotlib.rcParams)
    write(LocalStore(tmp_path), grid({"shuffle": [0.5]}))
    assert dict(matplotlib.rcParams) == before
    assert Gcf.get_all_fig_managers() == []


def test_answer_counts_many_settings() -> None:
    """The answer stays short with thirty settings; the tables have the rest."""
    seeds = range(12)  # the fewest for thirty comparisons are eleven
    rows = [trial(seed, 0, seed, SHUFFLE, 0.5) for seed in seeds]
    for k in range(1, 31):
        jitter = 0.1 if k < 3 else 0.0
        values = [0.5 + jitter + (-1) ** seed * 0.05 for seed in seeds]
        rows += [trial(12 * k + seed, k, seed, {"name": "spectral", "k": k}, values[seed]) for seed in seeds]
    record = study(rows)
    report = answer(record, summarise(record), compare(record, MRR), MRR)
    assert "spectral (k=1)" in report.headline
    assert "spectral (k=2)" in report.headline
    assert "Undecided: 28 settings." in report.details
    assert len(" ".join(report.details)) < 500
    rows = [
        row.model_copy(update={"metrics": {MRR: 0.6 + row.setting / 100 + row.seed / 1e4}}) if row.setting else row
        for row in rows
    ]
    headline = answer(study(rows), summarise(study(rows)), compare(study(rows), MRR), MRR).headline
    assert headline.startswith("Better than shuffle on retrieval/mrr: spectral (k=30) by ")
    assert headline.endswith(" and 27 others by less.")


def test_answer_takes_the_lowest_where_lower_is_better() -> None:
    record = study([trial(i, i, 0, SHUFFLE, 0.0) for i in range(2)])
    for i, each in enumerate(record.trials.values()):
        each.metrics = {"synthetic/excess": 0.1 + i}
    record.baseline = {}
    assert primary_metrics(record) == ["synthetic/excess"]
    assert answer(record, summarise(record), [], "synthetic/excess").headline.startswith(
        "The lowest mean synthetic/excess is 0.1000"
    )


def test_reader_chooses_what_curves_are_drawn_against_without_a_script(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    page = check_self_contained(text)
    axes = ("epochs", "images", "passes", "seconds")
    inputs = [value for tag, key, value in page.attributes if (tag, key) == ("input", "id")]
    assert inputs == [f"against-{axis}" for axis in axes]
    for axis in axes:
        figures = [
            value for tag, key, value in page.attributes if (tag, key, value) == ("figure", "class", f"against-{axis}")
        ]
        assert len(figures) == len(CURVE_FILES)
        assert f"#against-{axis}:not(:checked) ~ .figures .against-{axis}" in text
    style, inputs_at, figures_at = (
        text.index("</style>"),
        text.index('id="against-epochs"'),
        text.index('class="figures"'),
    )
    assert style < inputs_at < figures_at
    assert "against" not in script_of(text)


def test_curves_of_rows_without_work_are_drawn_against_epochs_and_seconds(tmp_path: Path) -> None:
    record, store = grid(FULL), LocalStore(tmp_path)
    write_histories(store, record)
    for path in (tmp_path / "trials").glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"work/', '"older/'))
    write(store, record)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="against-seconds"' in text
    assert 'id="against-passes"' not in text
