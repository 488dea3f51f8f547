"""The example runs under a launcher as it is, and its job files ask for what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from fitkit import NNHandler

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = EXAMPLES / "jobs"


@pytest.mark.ddp
@pytest.mark.slow
def test_the_example_as_it_is_in_two_processes(launcher, tmp_path, kit):
    command = [*kit.torchrun(2), str(EXAMPLES / "digits.py"), "--epochs", "1", "--output"]
    ended = launcher.run_command(tmp_path / "runs", [*command, str(tmp_path / "runs")])
    assert ended.code == 0, ended.output
    assert "terminate called" not in ended.output
    assert len(re.findall("^test accuracy of the best weights", ended.output, re.MULTILINE)) == 1
    assert (tmp_path / "runs" / "best.pth").exists()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray[train]")
def test_ray_starts_a_run_again_whose_worker_was_killed(tmp_path):
    command = [sys.executable, str(EXAMPLES / "ray_train.py"), "--folder", str(tmp_path / "ray")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = re.search(r"(\d) attempts, 2 ranks, (\d+) steps, loss (\S+)", ended.stdout)
    assert found, ended.stdout
    assert (tmp_path / "ray" / "killed").exists()
    assert found.group(1, 2) == ("2", "32")  # four epochs of eight batches
    assert float(found.group(3)) == pytest.approx(loss_of_one_process(), rel=1e-5)


def loss_of_one_process():
    """The last loss of the same run without ranks and without a failure."""
    x = torch.linspace(-1, 1, 512).reshape(128, 4)
    handler = NNHandler(torch.nn.Linear, "cpu", in_features=4, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(torch.nn.MSELoss())
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    return handler.fit(data, epochs=4, batch_size=16, progress_bar=False).train_losses[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_job_for_slurm_can_be_read():
    job = JOBS / "slurm.sh"
    subprocess.run(["bash", "-n", str(job)], check=True)
    assert_options_exist(job.read_text())


def test_the_elastic_job_can_be_read():
    text = (JOBS / "elastic.yaml").read_text()
    kinds = [part["kind"] for part in yaml.safe_load_all(text)]
    assert kinds == ["Service", "Job"]
    assert_options_exist(text.partition("examples/digits.py\n")[2].partition("resources")[0])


def assert_options_exist(text):
    known = set(re.findall(r'"(--[a-z]+)"', (EXAMPLES / "digits.py").read_text()))
    asked = set(re.findall(r"(--(?:resume|output|epochs))\b", text))
    assert asked
    assert asked <= known
