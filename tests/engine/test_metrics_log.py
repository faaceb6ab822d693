"""Reading rows of metrics from damaged files."""

from __future__ import annotations

import errno
import json

import pytest

from mbcl.engine.metrics_log import KEYS, read_rows, read_valid_rows, row_of
from mbcl.io.store import LocalStore

ROW = {**dict.fromkeys(KEYS), "epoch": 2, "step": 36, "train/loss": 2.5}
DAMAGED = {
    "cut": json.dumps(ROW)[:-9].encode(),
    "no row": b"1",
    "null": b"null",
    "list": b"[1, 2]",
    "no epoch": b'{"train/loss": 2.5}',
    "text for the epoch": b'{"epoch": "2"}',
    "text for a number": b'{"epoch": 2, "train/loss": "2.5"}',
    "not finite": b'{"epoch": 2, "train/loss": NaN}',
    "beyond a float": b'{"epoch": 2, "step": 1%s}' % (b"0" * 400),
    "no UTF-8": b"\xff\xfe" + json.dumps(ROW).encode(),
    "zeros": bytes(40),
    "nested": b"[" * 200_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_read_valid_rows_skips_and_names_a_damaged_line(tmp_path, damage, caplog):
    line = json.dumps(ROW).encode()
    assert row_of(line) == ROW
    assert row_of(DAMAGED[damage]) is None
    store = LocalStore(tmp_path)
    store.write_bytes("metrics.jsonl", b"\n".join([line, DAMAGED[damage], line]) + b"\n")
    assert read_valid_rows(store) == ([ROW, ROW], [f"{tmp_path}/metrics.jsonl: line 2 is damaged and left out"])
    assert read_rows(store) == [ROW, ROW]
    assert "line 2 is damaged" in caplog.text


def test_read_valid_rows_reports_disk_errors_but_raises_network_errors(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    assert read_valid_rows(store) == ([], [])

    def fails(number):
        def read_bytes(self, name):
            raise OSError(number, "no")

        monkeypatch.setattr(LocalStore, "read_bytes", read_bytes)

    fails(errno.EIO)
    assert read_valid_rows(store) == ([], [f"{tmp_path}/metrics.jsonl: cannot be read: no"])
    fails(errno.ENETDOWN)
    with pytest.raises(OSError, match="no"):
        read_valid_rows(store)
