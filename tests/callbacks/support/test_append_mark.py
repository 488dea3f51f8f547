"""What is remembered about a file before a run appends to it."""

from __future__ import annotations

import pytest

from fitkit.callbacks.support.append_mark import AppendMark
from fitkit.core.errors import SaveError


def test_only_a_run_that_saves_into_the_same_folders_finds_it(tmp_path):
    log, one, two = tmp_path / "log.csv", tmp_path / "one", tmp_path / "two"
    mark = AppendMark(log)
    assert mark.read([one]) is None
    mark.set("epoch,löss\n", [two, one])
    assert mark.is_set
    again = AppendMark(log)
    assert again.read([one, two]) == "epoch,löss\n"
    assert again.read([one]) is None
    assert again.read([]) is None
    assert [path.name for path in tmp_path.iterdir()] == [".log.csv.fitkit-begin"]
    again.remove()
    again.remove()
    assert not again.is_set
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"3", b"{}", b'{"folders": []}'])
def test_a_file_that_is_no_mark_is_none(tmp_path, content):
    (tmp_path / ".log.fitkit-begin").write_bytes(content)
    assert AppendMark(tmp_path / "log").read([]) is None


def test_it_cannot_be_written(tmp_path):
    (tmp_path / "folder").touch()
    with pytest.raises(SaveError, match="fitkit-begin"):
        AppendMark(tmp_path / "folder" / "log").set("", [])
