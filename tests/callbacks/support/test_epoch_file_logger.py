"""What CSV and JSON-lines files have in common."""

import csv
import json
import math
import shutil
from types import SimpleNamespace

import pytest

from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.json_lines_logger import JSONLinesLogger
from fitkit.callbacks.model_checkpoint import ModelCheckpoint
from fitkit.core.errors import ConfigurationError, SaveError
from fitkit.core.event import Event
from fitkit.core.logs import Logs

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


# ---- appending, and a kill before the first checkpoint -------------------------------------------


def mark_of(path):
    return path.with_name(f".{path.name}.fitkit-begin")


def killed(drive, kind, path, rows, **params):
    """A run that appends, and is killed before a checkpoint holds its rows."""
    driver = drive(kind(path, append=True))
    driver.begin(**params)
    for row in rows:
        driver.epoch(row)
    assert mark_of(path).exists()


NEW = {"loss": 3.0, "val_loss": 3.0, "new": 1.0}


@pytest.mark.parametrize("rows", [[], [ROWS[1]], [ROWS[1], ROWS[3]], [NEW]])
@pytest.mark.parametrize("before", [[], [{"loss": 9.0, "val_loss": 9.0}]])
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_starts_again_takes_back_what_it_appended(
    drive, kind, path, rows, before, times
):
    if before:
        drive(kind(path)).fit(before)
    for _ in range(times):
        killed(drive, kind, path, rows, resume=True)
    drive(kind(path, append=True)).fit([ROWS[4]], resume=True)
    assert read_losses(path) == [*(row["loss"] for row in before), ROWS[4]["loss"]]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_without_resume_the_rows_of_a_killed_run_stay(drive, kind, path):
    killed(drive, kind, path, [ROWS[1]])
    killed(drive, kind, path, [ROWS[3]])
    drive(kind(path, append=True)).fit([ROWS[4]], resume=True)
    assert read_losses(path) == [ROWS[1]["loss"], ROWS[4]["loss"]]
    assert not mark_of(path).exists()


def test_a_run_that_saves_elsewhere_takes_nothing_back(drive, kind, path):
    killed(drive, kind, path, [ROWS[1]], resume=True)
    other = drive(kind(path, append=True))
    other.handler.callbacks = [ModelCheckpoint(path.parent / "other" / "last.pth")]
    other.fit([ROWS[3]], resume=True)
    assert read_losses(path) == [ROWS[1]["loss"], ROWS[3]["loss"]]


def test_a_log_that_another_took_the_place_of_is_kept(drive, kind, path):
    drive(kind(path)).fit([{"loss": 9.0, "val_loss": 9.0}])
    killed(drive, kind, path, [ROWS[1]], resume=True)
    drive(kind(path)).fit([{"loss": 8.0, "val_loss": 8.0}])
    assert not mark_of(path).exists()
    killed(drive, kind, path, [ROWS[1]], resume=True)
    path.write_bytes(path.read_bytes().replace(b"8.0", b"7.0"))
    drive(kind(path, append=True)).fit([ROWS[3]], resume=True)
    assert read_losses(path) == [7.0, ROWS[1]["loss"], ROWS[3]["loss"]]


@pytest.mark.parametrize("saved_at", [1.0, 2.0])
def test_the_mark_goes_with_the_first_whole_checkpoint(drive, kind, path, saved_at):
    driver = drive(kind(path, append=True))
    driver.begin(resume=True)
    driver.epoch(ROWS[1])
    driver.handler.saves.stats = SimpleNamespace(began=1.0, saved_at=saved_at)
    driver.callbacks.fire(Event.CHECKPOINT_SAVED, "last.pth", Logs())
    assert mark_of(path).exists() == (saved_at == 1.0)  # weights only
    saved = driver.save()
    driver.epoch(ROWS[3])
    again = driver.resume(kind(path, append=True), saved=saved)
    again.epoch(ROWS[4])
    again.end()
    assert read_losses(path) == [ROWS[1]["loss"], ROWS[4]["loss"]]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_an_error_before_the_first_checkpoint_is_taken_back_too(drive, kind, path):
    driver = drive(kind(path, append=True))
    driver.begin(resume=True)
    driver.epoch(ROWS[1])
    driver.callbacks.fire_to_all(Event.EXCEPTION, RuntimeError())
    driver.end()
    drive(kind(path, append=True)).fit([ROWS[3]], resume=True)
    assert read_losses(path) == [ROWS[3]["loss"]]
    assert not mark_of(path).exists()


def test_without_append_there_is_no_mark(drive, kind, path):
    driver = drive(kind(path))
    driver.begin(resume=True)
    driver.epoch(ROWS[1])
    assert [one.name for one in path.parent.iterdir()] == [path.name]


# ---- a file that goes while the run goes on ---------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "deleted", "emptied", "folder deleted"])
@pytest.mark.parametrize("append", [False, True])
def test_a_file_that_goes_is_begun_anew(drive, kind, path, how, append):
    driver = drive(kind(path, append=append))
    driver.begin(resume=True)
    driver.epoch(ROWS[1])
    content = path.read_bytes()
    moved = path.parent.parent / "moved.txt"
    if how == "moved":
        path.rename(moved)
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "folder deleted":
            shutil.rmtree(path.parent)
    driver.epoch(ROWS[3])
    saved = driver.save()
    driver.epoch(ROWS[4])
    assert read_losses(path) == [ROWS[3]["loss"], ROWS[4]["loss"]]
    assert how != "moved" or moved.read_bytes() == content
    again = driver.resume(kind(path, append=append), saved=saved)
    again.epoch(ROWS[4])
    assert read_losses(path) == [ROWS[3]["loss"], ROWS[4]["loss"]]
    killed_again = drive(kind(path, append=append)).fit([ROWS[1]], resume=True)
    assert len(read_losses(path)) == (3 if append else 1)
    killed_again.end()


# ---- a disk without room -----------------------------------------------------------------------


def test_a_row_that_cannot_be_written_ends_training(drive, kind, path, no_file_longer_than):
    driver = drive(kind(path))
    driver.fit(ROWS[:1])
    content = path.read_bytes()
    driver.begin()
    with (
        no_file_longer_than(len(content) + 3),
        pytest.raises(SaveError, match=r"log\.txt'.*File too large") as caught,
    ):
        driver.epoch(ROWS[2])
    assert caught.value.path == path
    assert path.read_bytes() == content
    driver.end()
    driver.fit(ROWS[4:])  # the notebook's next cell
    assert read_losses(path) == [ROWS[0]["loss"], ROWS[2]["loss"], ROWS[4]["loss"]]


@pytest.mark.parametrize("until", [2, 3, 5])
def test_rows_that_cannot_be_written_wait_in_memory(
    drive, kind, path, whole, until, no_file_longer_than
):
    driver = drive(kind(path, on_error="warn"))
    driver.begin()
    driver.epoch(ROWS[0])
    content = path.read_bytes()
    with no_file_longer_than(len(content) + 3):
        with pytest.warns(RuntimeWarning, match="File too large"):
            driver.epoch(ROWS[1])
        for row in ROWS[2:until]:  # warnings are errors
            driver.epoch(row)
        assert path.read_bytes() == content
    for row in ROWS[until:]:
        driver.epoch(row)
    driver.end()
    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("append", [False, True])
def test_a_folder_that_cannot_be_made(drive, kind, tmp_path, append):
    (tmp_path / "folder").touch()
    path = tmp_path / "folder" / "log.txt"
    with pytest.raises(SaveError, match="log"):
        drive(kind(path, append=append)).begin()
    driver = drive(kind(path, append=append, on_error="warn"))
    with pytest.warns(RuntimeWarning, match="log"):
        driver.begin()
    driver.epoch(ROWS[0])
    (tmp_path / "folder").unlink()
    driver.epoch(ROWS[1])
    assert read_losses(path) == [ROWS[0]["loss"], ROWS[1]["loss"]]
