"""The pictures of docs/concepts.md show what the page says, and are the ones that it shows."""

from __future__ import annotations

import re
import runpy

import pytest

from .blocks import ROOT

SCRIPT = ROOT / "docs/site/figures.py"


def test_the_page_shows_every_figure():
    shown = re.findall(r"\(figures/(\w+)\.svg\)", (ROOT / "docs/concepts.md").read_text())
    assert shown == list(runpy.run_path(str(SCRIPT))["FIGURES"])
    assert sorted(path.stem for path in (ROOT / "docs/figures").glob("*.svg")) == sorted(shown)


@pytest.mark.slow
def test_figures_show_what_the_page_says(tmp_path):
    found = runpy.run_path(str(SCRIPT))["make"](tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == sorted(found)

    batches = found["batches"]
    names = ("random", "k-means, pools of 4 batches", "refined, the whole data set")
    losses, shares = ([batches[f"{what} {name}"] for name in names] for what in ("loss of", "one digit in"))
    assert losses == sorted(losses), "the harder the search, the higher the loss"
    assert shares == sorted(shares), "and the more false negatives"

    lifts = [found["hardness"][f"lift at {temperature}, pools of 8"] for temperature in (0.05, 0.1, 0.2, 0.5)]
    assert lifts == sorted(lifts, reverse=True), "hardness matters less at high temperatures"
    rules = found["false_negatives"]
    lift, share = ([rules[f"{key} with {rule}, pools of 8"] for rule in RULES] for key in ("lift, share", "share"))
    assert lift[0] == max(lift)
    assert share[0] == max(share)
    assert share[-1] == min(share), "labels part false negatives best"
    kept = found["staleness"]
    for age in (1, 5):
        assert kept[f"kept from epoch 0, of the fresh one's lift, at age {age}"] < 0.95, "the first plan ages most"
        assert (
            kept[f"kept from epoch 0, of the fresh one's lift, at age {age}"]
            < kept[f"kept from epoch 5, of the fresh one's lift, at age {age}"]
        )


RULES = ("no rule", "relative_margin 0.05", "skip 3", "apart: labels")
