"""The table of the keys of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import Callback, CheckpointError, NNHandler
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.read_weights import read_state
from fitkit.handler.state_dict import (
    ENTRIES,
    SkipParts,
    StateEntry,
    load_handler_state_dict,
    rollback_on_error,
)
from fitkit.testing import differences


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", in_features=1, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    return handler


@pytest.fixture
def extra(monkeypatch):
    """A new entry of the table: the attribute ``extra`` of the module, skipped with EMA."""

    def load(handler, value):
        handler.module.extra = value

    entry = StateEntry(lambda handler: getattr(handler.module, "extra", None), load, ("ema",))
    monkeypatch.setitem(ENTRIES, "extra", entry)


def test_every_required_key_is_written():
    assert set(schema.KEYS) <= set(ENTRIES)


def test_keys_are_in_the_order_of_the_schema_in_memory_and_in_a_file(handler, tmp_path):
    """In a file, what a list of checkpoints shows comes first, as it reads nothing else."""
    required = [key for key in ENTRIES if key in schema.KEYS]
    assert required == list(schema.KEYS)
    assert list(handler.get_state_dict()) == list(ENTRIES)
    handler.save(tmp_path / "a.pth")
    listed = [*schema.LISTED_KEYS, schema.FIRST_OTHER_KEY]
    others = [key for key in ENTRIES if key not in listed]
    assert list(read_state(tmp_path / "a.pth")) == [*listed, *others]


def test_every_entry_is_skipped_with_fields_that_exist():
    known = set(SkipParts.__dataclass_fields__)
    assert {name for entry in ENTRIES.values() for name in entry.skip} == known


def test_a_new_key_is_one_entry_and_older_files_load_without_it(handler, tmp_path, monkeypatch):
    loaded = []
    handler.save(tmp_path / "older.pth")
    entry = StateEntry(lambda h: {"x": 5}, lambda h, value: loaded.append(value))
    monkeypatch.setitem(ENTRIES, "new_key", entry)
    handler.save(tmp_path / "newer.pth")
    NNHandler.load(tmp_path / "older.pth")
    NNHandler.load(tmp_path / "newer.pth")
    assert loaded == [None, {"x": 5}]


@pytest.mark.parametrize("value", [{"x": (1, [torch.ones(2)])}, torch.zeros(3), "text"])
def test_a_new_entry_is_saved_restored_and_skipped(handler, extra, tmp_path, value):
    handler.module.extra = value
    handler.save(tmp_path / "a.pth")
    restored = NNHandler.load(tmp_path / "a.pth").module.extra
    assert not list(differences(restored, value))
    skipped = NNHandler.load(tmp_path / "a.pth", skip_ema=True)
    assert not hasattr(skipped.module, "extra")


def test_a_file_with_a_key_that_is_no_longer_known_still_loads(handler, extra, tmp_path):
    handler.module.extra = 3
    handler.save(tmp_path / "a.pth")
    del ENTRIES["extra"]
    assert not hasattr(NNHandler.load(tmp_path / "a.pth").module, "extra")


def test_an_error_rolls_a_new_entry_back_with_everything_else(handler, extra):
    handler.module.extra = "before"
    weight = handler.module.weight.detach().clone()

    def change():
        handler.module.extra = "after"
        torch.nn.init.zeros_(handler.module.weight)
        handler.state.epoch = handler.state.call = 5
        handler.add_callback(Callback())
        raise KeyError

    with pytest.raises(KeyError), rollback_on_error(handler):
        change()
    assert handler.module.extra == "before"
    assert torch.equal(handler.module.weight, weight)
    assert (handler.state.epoch, handler.state.call) == (0, 0)
    assert list(handler.callbacks) == [handler.history]


def test_a_state_is_checked_before_anything_is_loaded(handler):
    state = handler.get_state_dict()
    state["optimizer_state_dict"]["param_groups"] = []
    torch.nn.init.zeros_(handler.module.weight)
    with pytest.raises(CheckpointError, match=r"parameter groups of \[\]"):
        load_handler_state_dict(handler, state)
    assert handler.module.weight.item() == 0.0
    load_handler_state_dict(handler, state, skip_parts=SkipParts(optimizer=True))
    assert handler.module.weight.item() != 0.0


def test_what_an_entry_raises_is_a_checkpoint_error(handler, monkeypatch):
    entry = StateEntry(lambda h: 1, lambda h, value: {}[value])
    monkeypatch.setitem(ENTRIES, "new_key", entry)
    with pytest.raises(CheckpointError, match=r"does not fit this handler: 1 \(KeyError\)"):
        load_handler_state_dict(handler, handler.get_state_dict())
