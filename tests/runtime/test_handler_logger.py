import copy
import logging
import pickle

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import LoggingMode
from fitkit.runtime.handler_logger import close_files, make_logger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "run.log"


@pytest.mark.parametrize("mode", list(LoggingMode))
def test_lines_go_where_the_mode_says(mode, path, capsys):
    logger = make_logger(mode, str(path), logging.INFO)
    assert not path.parent.exists(), "nothing is made before a line is written"
    logger.info("hello %d", 5)
    logger.debug("too low")
    close_files(logger)
    console = capsys.readouterr().err
    assert ("INFO hello 5" in console) == (mode is not LoggingMode.FILE)
    assert path.exists() == (mode is not LoggingMode.CONSOLE)
    if path.exists():
        assert path.read_text().endswith("INFO hello 5\n")
        assert "too low" not in path.read_text()


def test_a_closed_file_is_opened_again_and_appended_to(path):
    logger = make_logger(LoggingMode.FILE, str(path), logging.INFO)
    for line in ("one", "two"):
        logger.info(line)
        close_files(logger)
        close_files(logger)
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["one", "two"]


def test_loggers_share_nothing(tmp_path, capsys):
    one = make_logger(LoggingMode.FILE, str(tmp_path / "1.log"), logging.INFO)
    other = make_logger(LoggingMode.FILE, str(tmp_path / "2.log"), logging.INFO)
    one.info("mine")
    close_files(one)
    close_files(other)
    assert not (tmp_path / "2.log").exists()
    assert capsys.readouterr().err == ""
    assert logging.getLogger("fitkit").handlers == []


def test_without_a_mode_the_program_decides(path, caplog):
    logger = make_logger(None, str(path), logging.INFO)
    with caplog.at_level(logging.INFO):
        logger.info("for the program")
        logger.debug("too low")
    assert [record.getMessage() for record in caplog.records] == ["for the program"]
    assert not path.parent.exists()
    close_files(logger)


@pytest.mark.parametrize("level", ["INFO", None, True, 1.0])
def test_the_level_must_be_one_of_logging(level):
    with pytest.raises(ConfigurationError, match=r"logger_level must be a level .* received"):
        make_logger(None, "x.log", level)


def test_the_file_stays_where_it_was_when_the_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = make_logger(LoggingMode.FILE, "run.log", logging.INFO)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    logger.info("x")
    close_files(logger)
    assert (tmp_path / "run.log").exists()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("mode", [None, LoggingMode.CONSOLE, LoggingMode.FILE])
def test_copies_write_to_the_same_place(path, copied, mode):
    logger = make_logger(mode, str(path), logging.WARNING)
    other = copied(logger)
    other.warning("from the copy")
    other.info("too low")
    close_files(other)
    assert (other.level, other.parent) == (logger.level, logger.parent)
    assert [type(handler) for handler in other.handlers] == [type(h) for h in logger.handlers]
    assert path.exists() == (mode is LoggingMode.FILE)
