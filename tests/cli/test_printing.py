"""The output of commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fitkit import SaveError
from fitkit.cli.printing import colored, json_text, require_free, table


def test_colors(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colored("text", "red") == "\x1b[31mtext\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b" in colored("text", "red"), "an empty one counts as none"
    monkeypatch.setenv("NO_COLOR", "1")
    assert colored("text", "red") == "text"


def test_json_takes_whatever_a_checkpoint_holds():
    value = {
        1: math.nan, "t": torch.ones(2, 3), "p": Path("a/b"), "s": {1}, "c": 1j, "b": b"x",
        "d": torch.float16, None: (-math.inf, True),
    }  # fmt: skip
    assert json.loads(json_text(value)) == {
        "1": None, "t": {"shape": [2, 3], "dtype": "float32"}, "p": "a/b", "s": [1], "c": "1j",
        "b": "b'x'", "d": "torch.float16", "None": [None, True],
    }  # fmt: skip


def test_tables():
    assert table([("name", "n"), ("a", "100")], right=[1]) == ["name    n", "a     100"]


def test_files_that_are_there(tmp_path):
    (tmp_path / "a").touch()
    require_free([tmp_path / "b"], force=False)
    require_free([tmp_path / "a"], force=True)
    with pytest.raises(SaveError, match="--force"):
        require_free([tmp_path / "b", tmp_path / "a"], force=False)
