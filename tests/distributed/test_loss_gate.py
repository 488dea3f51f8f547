"""A loss goes through the gate unchanged, and its backward pass gives what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.loss_gate import Counts, LossGate, with_gradients
from fitkit.runtime.backward import run_backward


def gate_of(model, **others):
    named = dict(model.named_parameters()) | others
    return LossGate(TrainedModules(model), named)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_passes_and_counts_get_their_gradient(dtype):
    model = nn.Linear(2, 1, dtype=dtype)
    gate = gate_of(model)
    for values in ([3.0, 5.0], [7.0, 0.0]):
        gate.counts.set(*values)
        loss = model(torch.ones(1, 2, dtype=dtype)).sum()
        passed, view = gate(loss)
        assert torch.equal(passed, loss)
        model.zero_grad()
        run_backward(passed * 1024, (view, gate.counts.values))  # as a loss scaler does
        assert gate.counts.parameter.grad.tolist() == values, (
            "it is not scaled, and does not add up"
        )
        assert model.bias.grad.item() == 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_that_are_too_inexact_carry_no_counts(dtype):
    gate = gate_of(nn.Linear(2, 1, dtype=dtype))
    assert gate.counts is None
    loss = torch.ones(())
    (passed,) = gate(loss)
    assert passed is loss


def test_parameters_of_the_optimizer_alone_are_the_gate_s_too():
    model, alone = nn.Linear(2, 1), torch.zeros(3, requires_grad=True)
    gate = gate_of(model, alone=alone)
    found = set(map(id, gate.parameters()))
    assert found == {*map(id, model.parameters()), id(alone), id(gate.counts.parameter)}


@pytest.mark.parametrize("size", [2, 3, 7, 64])
@pytest.mark.parametrize("number", [0, 1, 31, 32, 1000, 99_999])
def test_sums_of_whole_numbers_are_whole(size, number):
    counts = Counts(torch.float32)
    total = torch.tensor([number, number + 1], dtype=torch.float32)
    counts.parameter.grad = total / size  # as DDP averages
    assert counts.sums(size) == [number, number + 1]
    assert all(type(one) is int for one in counts.sums(size))


def test_sums_that_are_not_whole_stay_so():
    counts = Counts(torch.float64)
    counts.parameter.grad = torch.tensor([2.0, 0.3], dtype=torch.float64)
    assert counts.sums(2) == [4, 0.6]


def test_gradients_may_be_none():
    first, second = (torch.zeros(2, requires_grad=True) for _ in range(2))
    loss = with_gradients(
        torch.zeros((), requires_grad=True), [torch.ones(2), None], [first, second]
    )
    loss.backward()
    assert first.grad.tolist() == [1, 1]
    assert second.grad is None


def test_delayed_parameters_have_the_names_below_the_gate():
    model = nn.Linear(2, 1)
    options = {"delay_all_reduce_named_params": [("weight", model.weight)], "bucket_cap_mb": 1}
    renamed = LossGate.renamed(options)
    assert renamed == {**options, "delay_all_reduce_named_params": [("model.weight", model.weight)]}
    assert LossGate.renamed({"bucket_cap_mb": 1}) == {"bucket_cap_mb": 1}
