import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fitkit
from fitkit.core.errors import ConfigurationError


@pytest.fixture
def make(mlflow_store):
    def _make(**options):
        return fitkit.MLflowLogger("fitkit", tracking_uri=mlflow_store.tracking_uri, **options)

    return _make


def test_experiment_name_and_tags(drive, mlflow_store):
    logger = fitkit.MLflowLogger(
        "made here", "my run", mlflow_store.tracking_uri, tags={"fold": "3"}
    )
    drive(logger).fit([0.5])
    run = mlflow_store.get_run(logger.run_id)
    assert (run.info.run_name, run.data.tags["fold"]) == ("my run", "3")
    assert mlflow_store.get_experiment(run.info.experiment_id).name == "made here"


def test_more_values_and_parameters_than_mlflow_takes_at_once(drive, make, mlflow_store):
    logger = make(parameters={f"p{number:03d}": number for number in range(250)})
    drive(logger).fit([{f"m{number:04d}": 1.0 for number in range(2100)}])
    data = mlflow_store.get_run(logger.run_id).data
    assert len([name for name in data.params if name.startswith("p0")]) == 100
    assert len([name for name in data.metrics if name.startswith("m")]) == 2100


def test_parameters_stay_those_of_the_beginning(drive, make, mlflow_store):
    first = drive(make(parameters={"lr": 0.1})).fit([0.5])
    second = first.resume(make(parameters={"lr": 0.2}), last_epoch=200)
    second.end()
    assert mlflow_store.get_run(second.callbacks[0].run_id).data.params["lr"] == "0.1"


def test_times_are_those_of_the_values(drive, make, mlflow_store, monkeypatch):
    now = iter(range(1000, 2000))
    clock = SimpleNamespace(time=lambda: next(now) + 0.5, monotonic=time.monotonic)
    monkeypatch.setattr("fitkit.callbacks.support.tracker_logger.time", clock)
    logger = make(every_n_batches=1, refresh_seconds=1e6)
    drive(logger, steps=2).fit([0.5])
    found = mlflow_store.get_metric_history(logger.run_id, "batch/loss")
    assert [one.timestamp for one in found] == [1000500, 1002500]


def test_checkpoints_become_artefacts(make, mlflow_store, tmp_path, trained):
    logger = make(log_checkpoints="best")
    best = fitkit.ModelCheckpoint(tmp_path / "best.pth", "loss", True)
    other = fitkit.ModelCheckpoint(tmp_path / "other_{epoch}.pth")
    trained(logger, best, other)
    (found,) = mlflow_store.list_artifacts(logger.run_id, "checkpoints")
    assert found.path == "checkpoints/best.pth"
    copy = Path(mlflow_store.get_run(logger.run_id).info.artifact_uri) / found.path
    assert copy.read_bytes() == (tmp_path / "best.pth").read_bytes()


def test_mlflow_s_own_active_run_is_not_touched(drive, make):
    import mlflow

    drive(make()).begin()
    assert mlflow.active_run() is None


def test_a_run_that_is_not_in_the_store(drive, make):
    first = drive(make()).fit([0.5])
    saved = first.save()
    saved["callbacks"]["MLflowLogger"]["state"]["run_id"] = "0" * 32
    with pytest.raises(ConfigurationError, match=r"cannot continue.*Pass the tracking_uri"):
        first.resume(make(), saved=saved)


@pytest.mark.parametrize("name", ["", None, 3])
def test_wrong_names(name):
    with pytest.raises(ConfigurationError, match="received"):
        fitkit.MLflowLogger(name)
