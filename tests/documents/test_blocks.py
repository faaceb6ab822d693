"""Every command and code block of README, CONTRIBUTING and docs/ runs, or says why it cannot."""

from __future__ import annotations

import collections
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report.studies import EIGHT, grid, write_histories

from mbcl.cli import main
from mbcl.io.store import LocalStore
from mbcl.samplers import SAMPLERS
from mbcl.study.record import write_study

from .blocks import LANGUAGES, ROOT, Block, blocks, documents
from .running import Session, check

NOT_RUN = {
    "AGENTS.md": 1,
    "CONTRIBUTING.md": 2,
    "README.md": 1,
    "docs/cluster.md": 10,
    "docs/data.md": 1,
    "docs/evaluation.md": 1,
    "docs/gpu.md": 1,
    "docs/paper.md": 1,
    "docs/published_flags.md": 1,
    "docs/results.md": 1,
    "docs/study.md": 1,
    "docs/tutorial.md": 1,
}
"""Blocks that cannot run here, by document. A new one needs a reason in the document, and a line here."""
WHOLE = {"docs/benchmarks.md"}
"""Documents of which no block runs."""
NEEDS_TRAINING = ("docs/data.md", "docs/evaluation.md", "docs/results.md")
"""Documents whose commands read /tmp/run, which README's training makes."""
ALL = {document: blocks(document) for document in documents()}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what documents call /tmp/run and /tmp/exported."""
    folder = tmp_path_factory.mktemp("training")
    space, out = str(ROOT / "tune_spaces/digits.yaml"), str(folder / "run")
    assert main(["train", "--config", space, "--quiet", "--out", out]) == 0
    assert main(["export", "--checkpoint", out, "--out", str(folder / "exported")]) == 0
    return folder


@pytest.fixture
def session(tmp_path, monkeypatch, capsys) -> Iterator[Session]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(SAMPLERS, "_parts", dict(SAMPLERS._parts))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "tmp").mkdir()
    by_norm = next(block for block in ALL["CONTRIBUTING.md"] if block.language == "python")
    (tmp_path / "by_norm.py").write_text(by_norm.text)
    yield Session(tmp_path, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def prepare(document: str, session: Session, request: pytest.FixtureRequest) -> None:
    """Make what a document takes for granted: a training, embeddings in files."""
    if document in NEEDS_TRAINING:
        made = request.getfixturevalue("training")
        names = ("run", "exported") if document == "docs/evaluation.md" else ("run",)
        for name in names:
            shutil.copytree(made / name, session.folder / "tmp" / name)
    if document == "docs/results.md":
        store, study = LocalStore(session.folder / "results/samplers"), grid(EIGHT)
        write_study(store, study)
        write_histories(store, study)
    if document == "docs/samplers.md":
        rng = np.random.default_rng(0)
        z1, z2 = rng.normal(size=(2, 1500, 8)).astype("float32")
        np.savez("embeddings.npz", z1=z1, z2=z2)
        np.save("images.npy", z1)
        np.save("texts.npy", z2)
        np.save("image_ids.npy", np.arange(1500) // 2)
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = {"image": z1.tolist(), "text": z2.tolist(), "image_id": np.arange(1500) // 2}
        parquet.write_table(pyarrow.table(columns), "pairs.parquet")


def test_every_block_has_a_language_and_every_mark_a_reason():
    for block in (block for found in ALL.values() for block in found):
        assert block.language in LANGUAGES, f"{block.place}: language {block.language!r}"
        if block.mark in ("not run", "slow"):
            assert len(block.reason.split()) >= 3, f"{block.place}: {block.mark} needs a reason"
        if block.mark == "run by":
            assert Path(block.document).name in (ROOT / block.reason).read_text(), f"{block.place}: not in that test"


def test_only_so_many_blocks_are_not_run():
    not_run = [block for found in ALL.values() for block in found if block.mark == "not run"]
    counts = collections.Counter(block.document for block in not_run if not block.whole_document)
    assert dict(counts) == NOT_RUN
    assert {block.document for block in not_run if block.whole_document} == WHOLE


@pytest.mark.parametrize("block", [b for found in ALL.values() for b in found], ids=lambda block: block.place)
def test_commands_parse(block: Block, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    check(block)


@pytest.mark.parametrize(
    "document", [name for name, found in ALL.items() if any(b.mark in ("", "file") for b in found)]
)
def test_blocks_run(document: str, session: Session, request):
    prepare(document, session, request)
    session.run(ALL[document], slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name, found in ALL.items() if any(b.mark == "slow" for b in found)])
def test_slow_blocks_run(document: str, session: Session, request):
    prepare(document, session, request)
    session.run(ALL[document], slow=True)
