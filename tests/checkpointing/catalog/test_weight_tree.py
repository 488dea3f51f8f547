"""Weights by module."""

from __future__ import annotations

import torch
from torch import nn

from fitkit.checkpointing.catalog.weight_tree import weight_tree, weight_tree_within


def test_sums_and_shapes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4)))
    found = {one.name: one for one in weight_tree(model.state_dict())}
    assert list(found) == [
        "", "0", "0.weight", "0.bias", "1", "1.0", "1.0.weight", "1.0.bias", "1.0.running_mean",
        "1.0.running_var", "1.0.num_batches_tracked",
    ]  # fmt: skip
    assert (found[""].num_tensors, found[""].num_values) == (7, 33)
    assert found[""].size_bytes == sum(one.nbytes for one in model.state_dict().values())
    assert found["1"].dtypes == {"float32", "int64"}
    assert found["0.weight"].shape == (4, 3)
    assert found["1.0.num_batches_tracked"].shape == ()
    assert found["0"].shape is None


def test_names_of_a_module_stand_together_though_they_do_not_in_the_file():
    weights = {"a.x": torch.ones(1), "b.y": torch.ones(1), "a.z": torch.ones(1), "extra": 3}
    assert [one.name for one in weight_tree(weights)] == ["", "a", "a.x", "a.z", "b", "b.y"]


def test_a_module_and_a_tensor_of_one_name():
    weights = {"a": torch.ones(2), "a.b": torch.ones(3)}
    assert [(one.name, one.num_values) for one in weight_tree(weights)] == [
        ("", 5), ("a", 5), ("a.b", 3)
    ]  # fmt: skip


def test_depth():
    weights = {f"a.b{n}.c": torch.ones(1) for n in range(10)}
    assert [one.name for one in weight_tree(weights, 0)] == [""]
    assert [one.name for one in weight_tree(weights, 1)] == ["", "a"]
    assert len(weight_tree(weights, 2)) == 12
    assert len(weight_tree({"." * 5000: torch.ones(1)})) < 20
    assert len(weight_tree({})) == 1


def test_as_deep_as_fits():
    weights = {f"a.b{n}.c{k}": torch.ones(1) for n in range(10) for k in range(10)}
    assert len(weight_tree_within(weights, 12)) == 12
    assert len(weight_tree_within(weights, 11)) == 2
    assert len(weight_tree_within(weights, 200)) == 112
    assert len(weight_tree_within({f"w{n}": torch.ones(1) for n in range(50)}, 10)) == 51
