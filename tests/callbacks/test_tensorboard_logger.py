import os
from pathlib import Path

import pytest

import fitkit
from fitkit.core.errors import CheckpointError, ConfigurationError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make():
    return fitkit.TensorBoardLogger("logs/tb", every_n_batches=1)


def losses(logger):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(logger.run_dir), purge_orphaned_data=False).Reload()
    return [(one.step, round(one.value, 4)) for one in reader.Scalars("loss")]


def test_each_run_has_a_folder_of_its_own(drive):
    loggers = [make() for _ in range(3)]
    assert not Path("logs").exists()
    assert loggers[0].run_dir is None
    for logger in loggers:
        drive(logger).fit([0.5])
    assert [logger.run_id for logger in loggers] == ["run", "run_2", "run_3"]
    assert sorted(path.name for path in Path("logs/tb").iterdir()) == ["run", "run_2", "run_3"]


def test_a_named_run_does_not_mix_with_one_of_that_name(drive):
    for expected in ("first", "first_2"):
        logger = fitkit.TensorBoardLogger("tb", "first")
        drive(logger).fit([0.5])
        assert logger.run_id == expected
        assert losses(logger) == [(2, 1.0)]


@pytest.mark.parametrize("torn", [1, 11, 60, 120])
def test_a_torn_end_is_cut_off_too(drive, torn):
    """As after a power failure; the checkpoint knows what is missing no more than the file."""
    first = drive(make()).fit([{"loss": 4.0}, {"loss": 3.0}])
    saved = first.save()
    first.begin()
    first.epoch({"loss": 2.0})
    first.end()
    (*_, path) = sorted(first.callbacks[0].run_dir.iterdir())
    os.truncate(path, path.stat().st_size - torn)
    second = first.resume(make(), saved=saved)
    second.epoch({"loss": 2.0})
    second.end()
    assert losses(second.callbacks[0]) == [(2, 4.0), (4, 3.0), (6, 2.0)]


def test_files_of_one_second_are_read_in_their_order(drive, monkeypatch):
    monkeypatch.setattr("fitkit.callbacks.tensorboard_logger.time.time", lambda: 1e9)
    driver = drive(make())
    for _ in range(3):
        driver.fit([0.5])
    names = sorted(path.name for path in driver.callbacks[0].run_dir.iterdir())
    assert [name.split(".")[3] for name in names] == ["1000000000", "1000000001", "1000000002"]
    assert [step for step, _ in losses(driver.callbacks[0])] == [2, 4, 6]


def test_other_files_in_the_folder_are_left_alone(drive):
    driver = drive(make()).fit([0.5])
    note = driver.callbacks[0].run_dir / "note.txt"
    note.write_text("mine")
    driver.resume(make()).end()
    assert note.read_text() == "mine"


def test_a_missing_folder_is_told(drive):
    driver = drive(make()).fit([0.5])
    saved = driver.save()
    Path("logs").rename("moved")
    with pytest.warns(UserWarning, match="'logs/tb/run', no longer exists"):
        second = driver.resume(make(), saved=saved)
    second.epoch({"loss": 3.0})
    second.end()
    assert losses(second.callbacks[0]) == [(4, 3.0)]


def test_a_moved_folder_is_gone_on_with(drive):
    driver = drive(make()).fit([0.5])
    saved = driver.save()
    Path("logs").rename("moved")
    second = driver.resume(fitkit.TensorBoardLogger("moved/tb"), saved=saved)
    second.epoch({"loss": 3.0})
    second.end()
    assert [step for step, _ in losses(second.callbacks[0])] == [2, 4]


@pytest.mark.parametrize("run_id", ["../run", "/tmp", "", "a/../../b"])
def test_a_checkpoint_cannot_lead_out_of_the_folder(drive, run_id):
    logger = make()
    drive(logger).fit([0.5])
    state = {**logger.state_dict(), "run_id": run_id}
    with pytest.raises(CheckpointError, match="outside its folder"):
        logger.load_state_dict(state)
    assert logger.run_id == "run"


@pytest.mark.parametrize("wrong", [{"log_dir": ""}, {"log_dir": 3}, {"name": ""}, {"name": "a/b"}])
def test_wrong_arguments(wrong):
    with pytest.raises(ConfigurationError, match="received"):
        fitkit.TensorBoardLogger(**wrong)
