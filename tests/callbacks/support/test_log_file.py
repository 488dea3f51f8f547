"""A file that is replaced or extended as a whole."""

from __future__ import annotations

import warnings

import pytest

from fitkit.callbacks.support.log_file import LogFile
from fitkit.core.errors import ConfigurationError, SaveError


@pytest.mark.parametrize("on_error", ["ignore", None, True, ""])
def test_an_answer_to_errors_that_means_nothing(tmp_path, on_error):
    with pytest.raises(ConfigurationError, match="on_error must be 'raise' or 'warn'"):
        LogFile(tmp_path / "log", on_error)


def test_it_is_replaced_and_extended(tmp_path):
    file = LogFile(tmp_path / "new" / "log", "raise")
    assert file.read() is None
    assert file.is_gone()
    file.replace("")
    assert file.is_gone()
    file.append("ä\n")
    assert not file.is_gone()
    file.append("b\n")
    assert file.read() == "ä\nb\n"
    file.replace("c\n")
    assert file.read() == "c\n"
    assert [path.name for path in file.path.parent.iterdir()] == ["log"]


def test_no_part_of_a_line_stays(tmp_path, no_file_longer_than):
    file = LogFile(tmp_path / "log", "raise")
    file.replace("first\n")
    with no_file_longer_than(9), pytest.raises(SaveError, match=r"log'.*File too large") as caught:
        file.append("second\n")
    assert caught.value.path == file.path
    assert file.read() == "first\n"
    assert file.is_behind
    file.replace("first\nsecond\n")
    assert not file.is_behind


def test_a_warning_is_said_once(tmp_path, no_file_longer_than):
    file = LogFile(tmp_path / "log", "warn")
    file.replace("first\n")
    with no_file_longer_than(9):
        with pytest.warns(RuntimeWarning, match=r"log': File too large.*Training goes on"):
            file.append("second\n")
        file.replace("first\nsecond\n")  # warnings are errors
    assert file.read() == "first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.replace("first\nsecond\n")
    assert not file.is_behind


def test_what_cannot_be_read_is_not_overwritten(tmp_path):
    for on_error in ("raise", "warn"):
        with pytest.raises(SaveError, match=r"cannot read .* Make it readable"):
            LogFile(tmp_path, on_error).read()


def test_a_full_device(tmp_path):
    file = LogFile(tmp_path / "full", "raise")
    file.path.symlink_to("/dev/full")
    with pytest.raises(SaveError, match="full'"):
        file.append("line\n")
