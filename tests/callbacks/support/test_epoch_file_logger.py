"""What CSV and JSON-lines files have in common."""

import csv
import json
import math

import pytest

from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.json_lines_logger import JSONLinesLogger
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event

ROWS = [
    {"loss": 0.1 + 0.2, "lr": 1e-05},
    {"loss": 0.5, "lr": 1e-05, "val_loss": math.nan},
    {"loss": 0.25, "lr": 1e-05},
    {"loss": 0.125, "lr": 1e-05, "val_loss": 2.0, "late": -math.inf},
    {"loss": 0.0625, "lr": 1e-05, "val_loss": 1.0, "late": 3.0},
]


@pytest.fixture(params=[CSVLogger, JSONLinesLogger])
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "log.txt"


@pytest.fixture
def whole(drive, kind, tmp_path):
    """The file of an uninterrupted run over ``ROWS``."""
    path = tmp_path / "whole.txt"
    drive(kind(path)).fit(ROWS)
    return path.read_bytes()


def read_losses(path):
    text = path.read_text()
    if text.startswith("{"):
        return [json.loads(line)["loss"] for line in text.splitlines()]
    return [float(row["loss"]) for row in csv.DictReader(text.splitlines())]


def test_a_row_is_in_the_file_when_the_epoch_is_over(drive, kind, path):
    driver = drive(kind(path))
    driver.begin()
    for number, row in enumerate(ROWS, start=1):
        driver.epoch(row)
        assert len(read_losses(path)) == number
    assert read_losses(path) == [row["loss"] for row in ROWS]


def test_the_file_is_there_when_training_begins_and_no_folder_before(drive, kind, path):
    driver = drive(kind(path))
    assert not path.parent.exists()
    driver.begin()
    assert path.read_bytes() == b""


def test_a_fresh_run_overwrites(drive, kind, path):
    path.parent.mkdir()
    path.write_text("something else")
    drive(kind(path)).fit([0.5])
    assert read_losses(path) == [1.0]


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
@pytest.mark.parametrize("later", range(len(ROWS) + 1))
def test_resumed_at_any_epoch_it_ends_as_if_uninterrupted(drive, kind, path, whole, cut, later):
    """The state is of epoch ``cut``, the file of epoch ``later``, as after a kill."""
    first = drive(kind(path)).fit(ROWS[:cut])
    saved = first.save()
    for row in ROWS[cut:later]:
        first.epoch(row)
    written = path.read_bytes()
    if later < cut:  # not all that was written survived, as after a power failure
        path.write_bytes(written[: len(written) * later // cut])
    second = first.resume(kind(path), saved=saved)
    for row in ROWS[cut:]:
        second.epoch(row)
    assert path.read_bytes() == whole


def test_a_missing_file_is_written_anew(drive, kind, path, whole):
    first = drive(kind(path)).fit(ROWS[:3])
    path.unlink()
    path.parent.rmdir()
    second = first.resume(kind(path))
    assert len(read_losses(path)) == 3
    for row in ROWS[3:]:
        second.epoch(row)
    assert path.read_bytes() == whole


def test_resuming_a_finished_run_changes_nothing(drive, kind, path, whole):
    first = drive(kind(path)).fit(ROWS)
    before = path.stat()
    first.resume(kind(path)).end()
    after = path.stat()
    assert path.read_bytes() == whole
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_second_fit_goes_on(drive, kind, path, whole):
    driver = drive(kind(path))
    driver.fit(ROWS[:2])
    driver.fit(ROWS[2:])
    assert path.read_bytes() == whole


def test_a_resume_does_not_cut_a_file_of_another_run(drive, kind, path):
    first = drive(kind(path)).fit(ROWS[:2])
    drive(kind(path)).fit([{"accuracy": 0.5}])
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"columns.*'accuracy'.*Move that file away"):
        first.resume(kind(path))
    assert path.read_bytes() == content
    path.write_bytes(b"\x00\xff no log at all\n")
    with pytest.raises(ConfigurationError, match="Move that file away"):
        first.resume(kind(path))


def test_appending_keeps_what_is_there(drive, kind, path):
    drive(kind(path)).fit([0.5])
    drive(kind(path, append=True)).fit([{"loss": 2.0, "val_loss": 0.25}])
    assert read_losses(path) == [1.0, 2.0]


def test_appending_to_nothing_begins_a_file(drive, kind, path, whole):
    drive(kind(path, append=True)).fit(ROWS)
    assert path.read_bytes() == whole


def test_appending_to_an_unfinished_line_begins_a_new_one(drive, kind, path):
    drive(kind(path)).fit([0.5])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    drive(kind(path, append=True)).fit([0.25])
    assert read_losses(path) == [1.0, 1.0]


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_resumed_append_neither_doubles_nor_drops(drive, kind, path, cut):
    drive(kind(path)).fit([{"loss": 9.0, "val_loss": 9.0}])
    first = drive(kind(path, append=True))
    first.begin()
    for row in ROWS[1 : 1 + cut]:
        first.epoch(row)
    saved = first.save()
    first.epoch(ROWS[3])
    second = first.resume(kind(path, append=True), saved=saved)
    for row in ROWS[1 + cut :]:
        second.epoch(row)
    assert read_losses(path) == [9.0, *(row["loss"] for row in ROWS[1:])]


def test_a_new_column_while_appending_rewrites_the_rows_that_were_there(drive, kind, path):
    drive(kind(path)).fit([{"loss": 9.0, "val_loss": 9.0}])
    drive(kind(path, append=True)).fit([{"loss": 1.0, "val_loss": 1.0, "extra": 2.0}])
    assert read_losses(path) == [9.0, 1.0]
    assert len({line.count(",") for line in path.read_text().splitlines()}) == 1


@pytest.mark.parametrize(
    ("row", "params"),
    [
        ({"loss": 1.0}, {"metrics": ["accuracy"], "validation": False}),
        ({"loss": 1.0}, {"validation": True}),
        ({"other": 1.0}, {"validation": False}),
    ],
)
def test_appending_to_other_columns_is_an_error_before_training(drive, kind, path, row, params):
    drive(kind(path)).fit([row], validation=False)
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"cannot append.*append=False"):
        drive(kind(path, append=True)).begin(**params)
    assert path.read_bytes() == content


def test_only_the_main_process_writes(drive, kind, path):
    driver = drive(kind(path))
    driver.handler.world.is_main = False
    driver.fit(ROWS)
    assert not path.exists()


def test_a_failed_rewrite_leaves_the_file_whole_and_no_other(drive, kind, path, monkeypatch):
    from fitkit.callbacks.support import epoch_file_logger

    def fail(*args):
        raise OSError(28, "No space left on device")

    driver = drive(kind(path))
    driver.fit(ROWS[:1])
    content = path.read_bytes()
    monkeypatch.setattr(epoch_file_logger.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        driver.epoch(ROWS[1])
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_nothing_stays_open(drive, kind, path):
    driver = drive(kind(path))
    driver.begin()
    driver.epoch(ROWS[0])
    driver.callbacks.fire_to_all(Event.EXCEPTION, RuntimeError())
    assert not any(hasattr(value, "fileno") for value in vars(driver.callbacks[0]).values())


def test_a_value_named_epoch_does_not_hide_the_epoch(drive, kind, path):
    drive(kind(path)).fit([{"loss": 1.0, "epoch": 7.0}])
    assert "7" not in path.read_text()


def test_two_loggers_get_their_own_rows_back_whatever_the_order(drive, kind, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = drive(kind(one), kind(two)).fit(ROWS[:1])
    one.unlink()
    first.resume(kind(two), kind(one))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("filename", [None, "", 3, b"log"])
def test_bad_file_names(kind, filename):
    with pytest.raises(ConfigurationError, match="received"):
        kind(filename)
