import re

import numpy as np
import pytest
import torch
from torch import nn

import fitkit
from fitkit.runtime.rng import capture_streams
from fitkit.testing import differences


class Net(nn.Module):
    """Shares a module, ties a weight, draws, counts, and returns a dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.again = self.block
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.calls += 1
        hidden = self.again(self.block(self.embed(x).mean(1)))
        return {"out": self.head(hidden) + torch.rand(()), "hidden": hidden}


SHARED = 50 * 8 + 8 * 8 + 8 + 2 * 8
BATCH = (torch.zeros(4, 5, dtype=torch.long), torch.zeros(4))


def make(model=None, **options):
    return fitkit.NNHandler(Net() if model is None else model, "cpu", **options)


def rows_of(summary):
    return {row.name: row for row in summary.rows}


def test_shared_and_tied_parts_are_counted_once():
    summary = make().summary()
    assert summary.num_parameters == SHARED + 3 == sum(r.num_parameters for r in summary.rows)
    assert summary.num_trainable == SHARED == sum(r.num_trainable for r in summary.rows)
    rows = rows_of(summary)
    assert (rows["again"].same_as, rows["head"].same_as) == ("block", "embed")
    assert "again.0" not in rows
    assert rows[""].num_parameters == 3  # its own, those of its parts stand there


def test_memory_is_what_the_tensors_take():
    handler = make()
    assert handler.summary().optimizer_bytes is None
    handler.set_optimizer(torch.optim.Adam)
    summary = handler.summary()
    assert summary.parameter_bytes == 4 * (SHARED + 3)
    assert summary.gradient_bytes == 4 * SHARED
    assert summary.buffer_bytes == 4 * (8 + 8 + 2) + 8


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adagrad, {}),
        (torch.optim.NAdam, {}),
    ],
)
def test_the_optimizer_s_memory_is_told_before_its_first_step(optimizer, kwargs):
    handler = make(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2)), seed=0)
    handler.set_optimizer(optimizer, **kwargs)
    handler.set_loss_fn(nn.MSELoss())
    message = handler.summary().optimizer_bytes
    handler.fit((torch.zeros(4, 8), torch.zeros(4, 2)), progress_bar=False)
    assert message == handler.summary().optimizer_bytes


def test_an_optimizer_that_cannot_tell_is_left_out():
    class Reads(torch.optim.SGD):
        def step(self, closure=None):
            float(self.param_groups[0]["params"][0].sum())

    handler = make()
    handler.set_optimizer(Reads)
    summary = handler.summary()
    assert summary.optimizer_bytes is None
    assert "optimizer" not in str(summary)


@pytest.mark.parametrize("example", [BATCH, BATCH[0], BATCH[0].numpy(), {"x": BATCH[0]}])
def test_shapes_come_from_one_pass(example):
    rows = rows_of(make().summary(example))
    assert rows[""].outputs == ((4, 50), (4, 8))
    assert (rows["embed"].outputs, rows["embed"].num_calls) == (((4, 5, 8),), 1)
    assert (rows["block.0"].outputs, rows["block.0"].num_calls) == (((4, 8),), 2)


def test_shapes_from_a_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    rows = rows_of(make(model).summary(input_size=(2, 3, 8, 8)))
    assert rows["0"].outputs == ((2, 4, 6, 6),)
    two = make(nn.Bilinear(3, 4, 5)).summary(input_size=[(2, 3), (2, 4)])
    assert rows_of(two)[""].outputs == ((2, 5),)


def test_the_pass_leaves_everything_as_it_was():
    handler = make()
    handler.module.block.eval()
    handler.module(BATCH[0])["out"].sum().backward()
    model = handler.module

    def seen():
        return {
            "streams": capture_streams(),
            "modes": [part.training for part in model.modules()],
            "tensors": [t.clone() for t in (*model.parameters(), *model.buffers())],
            "gradients": [p.grad.clone() for p in model.parameters() if p.grad is not None],
            "hooks": [len(part._forward_hooks) for part in model.modules()],
        }

    before = seen()
    handler.summary(BATCH)
    assert not list(differences(before, seen()))
    with pytest.raises(IndexError):
        handler.summary((BATCH[0] + 50, BATCH[1]))
    assert not list(differences(before, seen()))


def test_a_model_whose_shapes_are_not_decided_yet():
    handler = make(nn.Sequential(nn.LazyLinear(4)))
    assert handler.summary().num_parameters == 0
    with pytest.raises(fitkit.ConfigurationError, match="call it on a batch first"):
        handler.summary(torch.zeros(2, 3))
    handler.module(torch.zeros(2, 3))
    assert handler.summary(torch.zeros(2, 3)).num_parameters == 16


@pytest.mark.parametrize("wrong", [3, (), (1, "3"), (-1, 3), np.zeros(2)])
def test_a_size_that_is_none(wrong):
    with pytest.raises(fitkit.ConfigurationError, match="must be a shape"):
        make().summary(input_size=wrong)
    with pytest.raises(fitkit.ConfigurationError, match="pass one of them"):
        make().summary(BATCH, input_size=(1, 2))


def test_the_table():
    handler = make(nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)))
    handler.set_optimizer(torch.optim.Adam)
    handler.module[0].requires_grad_(False)
    assert str(handler.summary(input_size=(1, 784))).splitlines() == [
        "module   kind        output    parameters  trainable",
        "----------------------------------------------------",
        "(model)  Sequential  (1, 10)            0          0",
        "  0      Linear      (1, 100)      78,500          0",
        "  1      ReLU        (1, 100)           0          0",
        "  2      Linear      (1, 10)        1,010      1,010",
        "----------------------------------------------------",
        "parameters: 79,510, trainable 1,010, not trainable 78,500",
        "memory: parameters 310.6 KiB, buffers 0 B, gradients 3.9 KiB, optimizer 7.9 KiB",
    ]
    html = handler.summary()._repr_html_()
    assert len(re.findall("<tr>", html)) == 5
