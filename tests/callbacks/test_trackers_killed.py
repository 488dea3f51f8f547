"""SIGKILL between a checkpoint and the next, in real processes, with every tracker attached."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover

SCRIPT = Path(__file__).parents[1] / "scripts" / "tracked_run.py"


@pytest.fixture
def folder(tmp_path, mlflow_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = Path(mlflow_store.tracking_uri.removeprefix("sqlite:///"))
    Path("mlflow.db").write_bytes(database.read_bytes())  # making its tables takes seconds


@pytest.mark.slow
def test_killed_twice_the_runs_hold_every_step_once(folder, readers):
    starts = [sys.executable, SCRIPT, "7,all", "14", "0"]  # checkpoints are at 4, 8, 12
    ended = subprocess.run(starts, capture_output=True, text=True)
    first, second, *run_ids, last = ended.stdout.split()
    assert [int(one) for one in (first, second, last)] == [signal.SIGKILL] * 2 + [0], ended.stderr
    rows = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    losses = []
    for reader, run_id in zip(readers(Path("mlflow.db")), run_ids, strict=True):
        found = reader.read(run_id)
        assert [step for step, _ in found["batch/loss"]] == list(range(1, 21))
        assert found["loss"] == [
            (10 * n, pytest.approx(row["loss"], 1e-6)) for n, row in enumerate(rows, 1)
        ]
        assert reader.status(run_id) == "finished"
        losses.append([value for _, value in found["batch/loss"]])
    in_tensorboard, in_mlflow, in_wandb = losses
    assert in_mlflow == in_wandb == pytest.approx(in_tensorboard, 1e-6)
    # one run in each
    assert len(list(Path("tb").iterdir())) == 1
    assert len({path.name for path in Path("wandb").glob("offline-run-*/*.wandb")}) == 1
    assert len(list(Path("wandb").glob("offline-run-*/*.wandb"))) == 3
