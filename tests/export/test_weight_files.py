"""Exported weights: shared memory, and what a format cannot hold."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from fitkit import CheckpointError
from fitkit.checkpointing.storage import atomic_write
from fitkit.export.weight_files import export_safetensors, export_state_dict, tied_names


def read(path):
    return safetensors.torch.load_file(path)


def test_views_of_one_memory_are_written_each_with_its_own(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {"whole": whole, "row": whole[1], "turned": whole.T, "scalar": torch.tensor(3)}
    export_safetensors(weights, tmp_path / "w.safetensors")
    found = read(tmp_path / "w.safetensors")
    assert set(found) == set(weights)
    assert all(found[name].equal(one) for name, one in weights.items())


def test_what_is_no_tensor_is_named(tmp_path):
    weights = {"w": torch.ones(2, requires_grad=True), "module._extra_state": {"a": 1}}
    assert export_safetensors(weights, tmp_path / "w") == ["module._extra_state"]
    assert set(read(tmp_path / "w")) == {"w"}


def test_a_sparse_tensor_is_refused(tmp_path):
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)
    with pytest.raises(CheckpointError, match="the sparse 's'"):
        export_safetensors({"s": sparse}, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_only_the_same_view_is_tied(tmp_path):
    memory = torch.arange(4.0)
    weights = {"a": memory, "b": memory, "half": memory[:2], "copy": memory.clone()}
    weights |= {"none": torch.zeros(0), "nothing": torch.zeros(0)}
    atomic_write.write(weights, tmp_path / "w.pth")
    assert tied_names(tmp_path / "w.pth", weights) == {"b": "a"}
    averaged = {**weights, "b": memory + 1}  # they moved apart: both are needed
    assert tied_names(tmp_path / "w.pth", averaged) == {}


def test_a_state_dict_can_be_read_anywhere(tmp_path):
    weights = {"w": torch.ones(2), "module._extra_state": {"a": 1}}
    export_state_dict(weights, tmp_path / "new" / "w.pth")
    found = torch.load(tmp_path / "new" / "w.pth", weights_only=True)
    assert found["w"].equal(weights["w"])
    assert found["module._extra_state"] == {"a": 1}
