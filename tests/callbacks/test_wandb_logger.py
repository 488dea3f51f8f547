import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fitkit
from fitkit.callbacks.support.wandb_file import WandbFile
from fitkit.core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(**options):
    return fitkit.WandbLogger("fitkit", mode="offline", dir=".", **options)


def records(run_id, kind):
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(Path("wandb").glob(f"offline-run-*/run-{run_id}.wandb")):
        for content in WandbFile(path).read_records():
            record = Record.FromString(content)
            if record.WhichOneof("record_type") == kind:
                yield getattr(record, kind)


def test_a_resume_is_another_segment_of_the_same_run(drive):
    first = drive(make()).fit([0.5])
    first.resume(make()).end()
    runs = list(records(first.callbacks[0].run_id, "run"))
    assert [run.resume for run in runs] == [False, True]
    assert len({run.run_id for run in runs}) == 1


def test_options_reach_wandb(drive):
    logger = make(name="my run", tags=["a", "b"], group="folds")
    drive(logger).fit([0.5])
    (run, *_) = records(logger.run_id, "run")
    assert (run.display_name, list(run.tags), run.run_group) == ("my run", ["a", "b"], "folds")


def test_times_are_those_of_the_values(drive, monkeypatch):
    clock = SimpleNamespace(time=lambda: 1234.5, monotonic=time.monotonic)
    monkeypatch.setattr("fitkit.callbacks.support.tracker_logger.time", clock)
    logger = make()
    drive(logger).fit([0.5])
    (row,) = records(logger.run_id, "history")
    values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item}
    assert values["_timestamp"] == 1234.5


def test_the_run_of_the_program_is_left_alone(drive):
    import wandb

    theirs = wandb.init(project="theirs", mode="offline", dir=".")
    logger = make()
    driver = drive(logger)
    driver.begin()
    assert wandb.run is theirs
    assert logger.wandb_run.id == logger.run_id != theirs.id
    driver.end()
    assert logger.wandb_run is None
    assert wandb.run is theirs
    theirs.finish()


def test_checkpoints_become_versions_of_an_artefact(trained, tmp_path):
    logger = make(log_checkpoints=True)
    trained(logger, fitkit.ModelCheckpoint("e{epoch}.pth"))
    found = list(records(logger.run_id, "artifact"))
    assert [(one.type, sorted(one.aliases)) for one in found] == [
        ("model", ["e1", "latest"]),
        ("model", ["e2", "latest"]),
    ]
    assert found[0].manifest.contents[0].path == "e1.pth"


def test_online_steps_that_the_server_has_are_left_out():
    class Online:
        starting_step = 3
        offline = False

        def __init__(self):
            self.rows = []

        def log(self, values, step, commit):
            self.rows.append((step, values["loss"], commit))

    logger = make()
    logger.wandb_run = Online()
    assert logger.rows_after(0) == {}
    logger.write_rows([(step, 0.0, {"loss": step / 2}) for step in (2, 3, 4)])
    assert logger.wandb_run.rows == [(3, 1.5, True), (4, 2.0, True)]


@pytest.mark.parametrize("option", ["config", "id", "resume", "resume_from"])
def test_what_the_logger_decides_itself(option):
    with pytest.raises(ConfigurationError, match=f"sets the argument '{option}'.*leave it out"):
        make(**{option: "x"})


def test_a_relative_folder_is_that_of_the_program(drive, tmp_path, monkeypatch):
    """W&B's process was started in another one."""
    drive(make()).fit([0.5])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    logger = make()
    drive(logger).fit([0.5])
    assert len(list(records(logger.run_id, "history"))) == 1
