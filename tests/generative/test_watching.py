from __future__ import annotations

import io

import pytest
import torch

from fitkit import SamplingError
from fitkit.generative.watching import watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_values_that_are_no_numbers_end_a_draw():
    with watched("Sample", 9, show=False) as watch:
        watch(0.9, torch.ones(2))
        with pytest.raises(SamplingError, match=r"after step 2 of 9, at t = 0.5: look at"):
            watch(0.5, torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("total", [2, None])
def test_a_terminal_shows_a_bar(monkeypatch, total):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with watched("Sample", total, show=True) as watch:
        for t in (0.5, 0.0):
            watch(t, torch.ones(1))
    assert "Sample" in screen.getvalue()
    assert ("2/2" if total else "2 steps") in screen.getvalue()


@pytest.mark.parametrize("screen", [Terminal, io.StringIO])
def test_nothing_is_shown_where_nobody_watches(monkeypatch, screen):
    monkeypatch.setattr("sys.stderr", shown := screen())
    with watched("Sample", 1, show=screen is io.StringIO) as watch:
        watch(0.0, torch.ones(1))
    assert shown.getvalue() == ""
