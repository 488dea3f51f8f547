"""A skipped test runs again in the last stage of .ci/run, and must not be skipped there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover

CONFTEST = f"""
import importlib.util
path = {str(Path(__file__).with_name("conftest.py"))!r}
specification = importlib.util.spec_from_file_location("shared", path)
shared = importlib.util.module_from_spec(specification)
specification.loader.exec_module(shared)
hooks = [name for name in dir(shared) if name.startswith("pytest_")]
globals().update({{name: getattr(shared, name) for name in hooks}})
"""
TESTS = """
import os, pytest

@pytest.fixture(scope="module")
def browser():
    if "BROWSER" not in os.environ:
        pytest.skip("no browser")

def test_page(browser): pass
def test_mount(): pytest.skip("no root")
def test_number(): pass
@pytest.mark.slow
def test_training(): pass
"""
SETTINGS = "[pytest]\naddopts = -m 'not slow'\nmarkers =\n    slow:\n    skipped:\n"


def outcome(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """The exit code and the output of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-ra", *options]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return ended.returncode, ended.stdout


@pytest.mark.slow
def test_what_was_skipped_runs_again_and_a_skip_is_then_an_error(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('nowhere')\n")
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    code, output = outcome(tmp_path, FITKIT_TEST_REQUIRE="")
    assert code == 0
    assert "1 passed, 3 skipped, 1 deselected" in output
    again = ("--continue-on-collection-errors", "-m", "slow or skipped")
    code, output = outcome(tmp_path, *again, FITKIT_TEST_REQUIRE="all", BROWSER="yes")
    assert code == 1
    assert "1 failed, 2 passed, 1 deselected, 1 error" in output
    refused = re.findall(r"skipped in spite of FITKIT_TEST_REQUIRE=all: Skipped: (.+)", output)
    assert {"no root", "could not import 'nowhere': No module named 'nowhere'"} <= set(refused)
