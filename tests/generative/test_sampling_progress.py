from __future__ import annotations

import io

import pytest
import torch

from fitkit import SamplingError
from fitkit.generative.sampling_progress import track_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_values_that_are_no_numbers_end_a_draw():
    with track_progress("Sample", 9, show=False) as on_step:
        on_step(0.9, torch.ones(2))
        with pytest.raises(SamplingError, match=r"after step 2 of 9, at t = 0.5: check the"):
            on_step(0.5, torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("total", [2, None])
def test_a_terminal_shows_a_bar(monkeypatch, total):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with track_progress("Sample", total, show=True) as on_step:
        for t in (0.5, 0.0):
            on_step(t, torch.ones(1))
    assert "Sample" in screen.getvalue()
    assert ("2/2" if total else "2 steps") in screen.getvalue()


@pytest.mark.parametrize("screen", [Terminal, io.StringIO])
def test_nothing_is_shown_where_nobody_watches(monkeypatch, screen):
    monkeypatch.setattr("sys.stderr", shown := screen())
    with track_progress("Sample", 1, show=screen is io.StringIO) as on_step:
        on_step(0.0, torch.ones(1))
    assert shown.getvalue() == ""
