"""The output of commands."""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from fitkit import SaveError
from fitkit.cli.printing import colored, json_text, require_free, short_repr, table


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


@pytest.mark.parametrize(
    "value",
    [1, "a'b", [], (), {}, (1,), ((1,),), (1, [2, (3, 4)]), {"a": [1, {2: ()}], (3,): None}, {1, 2},
     OrderedDict(a=[1]), [1.5, None, True]],
)  # fmt: skip
def test_a_short_repr_is_the_beginning_of_the_repr(value):
    text = repr(value)
    assert short_repr(value, len(text)) == text
    for size in range(len(text)):
        assert short_repr(value, size) == f"{text[:size]}..."


def test_a_short_repr_takes_no_longer_for_long_values():
    value = [torch.zeros(3)] * 1_000_000
    began = time.process_time()
    assert short_repr([value] * 1_000_000, 30) == "[[tensor([0., 0., 0.]), tensor..."
    assert time.process_time() - began < 0.1
