"""Pausing garbage collection."""

from __future__ import annotations

import contextlib
import gc

import pytest

from fitkit.core.pause_gc import pause_gc


@pytest.mark.parametrize("is_enabled", [True, False])
def test_it_is_afterwards_as_it_was_also_after_an_error(is_enabled):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        with contextlib.suppress(KeyError), pause_gc():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
