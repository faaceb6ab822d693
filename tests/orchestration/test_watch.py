"""``--watch``: the pages of a running study."""

from __future__ import annotations

import pytest

from mbcl.io.store import LocalStore
from mbcl.orchestration.watch import SECONDS, Watch
from mbcl.report import writer

from .test_live import study_of


class Pages(LocalStore):
    """A folder that keeps every page that was written."""

    def __init__(self, folder):
        super().__init__(folder)
        self.pages = []

    def write_bytes(self, name, content):
        super().write_bytes(name, content)
        if name == "report.html":
            self.pages.append(content.decode())


@pytest.mark.parametrize("statuses", [("pending", "pending"), ("finished", "running", "failed")])
def test_every_page_of_a_running_study_reloads_itself_and_the_last_one_does_not(tmp_path, statuses):
    store, study = Pages(tmp_path), study_of(*statuses)
    watch = Watch(store, study, writer.write)
    watch.poll()
    assert not store.pages, "not before half a minute"
    for _ in range(2):
        watch._written_at -= SECONDS + 1
        watch.poll()
        watch.close()
    assert len(store.pages) == 2
    reload = f'<meta http-equiv="refresh" content="{SECONDS:g}">'
    assert all(page.index(reload) < page.index("</head>") for page in store.pages)
    assert [record.status for record in study.trials.values()] == list(statuses)
    writer.write(store, study)
    assert reload not in store.pages[-1]
