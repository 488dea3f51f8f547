"""The example runs under a launcher as it is, and its job files ask for what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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
