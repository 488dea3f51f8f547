"""Parameter groups by name: after a restart, after a load, and those that a callback added."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from fitkit import Callback, CheckpointError, NNHandler
from fitkit.handler.optimizer_groups import (
    add_groups,
    align,
    are_of_model,
    checked_groups,
    describe_groups,
    make_groups,
)

DATA = (torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs).relu())


class AddsBody(Callback):
    """Unfreezes the body at the beginning of an epoch, or of each run."""

    def __init__(self, epoch):
        self.epoch = epoch

    def add(self):
        body = self.handler.module.body.parameters()
        self.handler.optimizer.add_param_group({"params": body, "lr": 0.001})

    def on_train_begin(self, logs):
        if self.epoch is None:
            self.add()

    def on_epoch_begin(self, epoch, logs):
        if epoch == self.epoch:
            self.add()


class Counting(torch.optim.Optimizer):
    """Keeps values of the whole under keys that are no parameters."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self.state["whole"]["k"] = self.state["whole"].get("k", 0) + 1
        self.state["last"] = self.state["whole"]["k"]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"] / self.state["last"])


def head(module):
    return module.head.parameters()


def no_decay(module):
    return [
        {"params": [p for p in module.parameters() if p.ndim > 1]},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def in_one_group(**options):
    return lambda m: [{"params": list(m.body.parameters())}, {"params": list(head(m)), **options}]


def named(module):
    return [
        {"params": list(module.body.named_parameters())},
        {"params": list(module.head.named_parameters()), "lr": 0.01},
    ]


def make(cls=Adam, params=None, **options):
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(cls, params=params, **{"lr": 0.1, **options})
    return handler


def run(folder, epochs, *callbacks, **how):
    handler = make(**how)
    handler.auto_save(1, folder, "{epoch:02d}")
    handler.fit(
        DATA, epochs=epochs, batch_size=8, progress_bar=False, resume=True, callbacks=callbacks
    )
    return handler


def assert_equal(first, second):
    for one, two in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, two)


HOW = {
    "amsgrad": {"params": in_one_group(amsgrad=True)},
    "centered": {"cls": torch.optim.RMSprop, "params": in_one_group(centered=True)},
    "momentum": {"cls": torch.optim.RMSprop, "params": in_one_group(momentum=0.9)},
    "sgd": {"cls": SGD, "params": in_one_group(momentum=0.9)},
    "adagrad": {"cls": torch.optim.Adagrad, "params": no_decay},
    "no decay": {"cls": torch.optim.AdamW, "params": no_decay},
    "head": {"params": head},
    "named": {"params": named},
    "keys of its own": {"cls": Counting},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.filterwarnings("ignore:.*not attached")
def test_groups_go_on_exactly_after_a_restart_and_a_load(tmp_path, how):
    whole = run(tmp_path / "whole", 4, **HOW[how])
    run(tmp_path / "parts", 2, **HOW[how])
    parts = run(tmp_path / "parts", 4, **HOW[how])
    assert_equal(whole, parts)
    parts.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    assert describe_groups(loaded.parts) == describe_groups(parts.parts)
    for handler in (whole, loaded):
        handler.fit(DATA, epochs=1, batch_size=8, progress_bar=False)
    assert_equal(whole, loaded)


@pytest.mark.parametrize(("epoch", "stop"), [(1, 1), (1, 2), (1, 3), (None, 2)])
@pytest.mark.filterwarnings("ignore:.*not attached")
def test_a_group_that_a_callback_adds(tmp_path, epoch, stop):
    whole = run(tmp_path / "whole", 4, AddsBody(epoch), params=head)
    run(tmp_path / "parts", stop, AddsBody(epoch), params=head)
    parts = run(tmp_path / "parts", 4, AddsBody(epoch), params=head)
    assert_equal(whole, parts)
    assert len(parts.optimizer.param_groups) == 2
    parts.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    for handler in (whole, loaded):
        handler.fit(DATA, epochs=1, batch_size=8, progress_bar=False)
    assert_equal(whole, loaded)


def test_going_back_to_a_file_from_before_the_group_was_added(tmp_path):
    whole = run(tmp_path, 3, AddsBody(1), params=head)
    weight = whole.module.body.weight.clone()
    whole.fit(
        DATA, epochs=3, batch_size=8, progress_bar=False, resume=tmp_path / "01.pth",
        callbacks=[AddsBody(1)],
    )  # fmt: skip
    assert torch.equal(whole.module.body.weight, weight)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (None, r"of 2 \(head.weight, head.bias\), this handler's of 4 \(body.weight, body.bias"),
        (lambda m: m.body.parameters(), r"handler's of 2 \(body.weight, body.bias\)"),
        (lambda m: [{"params": [p]} for p in head(m)], r"1 \(head.weight\) \+ 1 \(head.bias\)"),
    ],
)
def test_other_members_are_one_error_with_both(tmp_path, params, sentence):
    run(tmp_path, 1, params=head)
    with pytest.raises(CheckpointError, match=sentence):
        run(tmp_path, 2, params=params)


def test_moments_go_to_the_parameter_of_their_name(tmp_path):
    whole = run(tmp_path / "whole", 3, params=lambda m: [m.head.weight, m.head.bias])
    run(tmp_path / "parts", 1, params=lambda m: [m.head.weight, m.head.bias])
    parts = run(tmp_path / "parts", 3, params=lambda m: [m.head.bias, m.head.weight])
    assert_equal(whole, parts)


def test_a_name_that_is_gone_is_renamed_and_one_of_another_group_is_not():
    handler = make()
    saved, groups = handler.optimizer.state_dict(), describe_groups(handler.parts)
    groups[0]["names"] = ["trunk.weight", "head.bias", "head.weight", "trunk.bias"]
    aligned, added = align(handler.parts, saved, groups)
    assert aligned["param_groups"][0]["params"] == [0, 3, 2, 1]
    assert added == []
    groups[0]["names"][0] = "head.bias"
    with pytest.raises(CheckpointError, match="parameter groups of 4"):
        align(make(params=lambda m: m.body.parameters()).parts, saved, groups)


@pytest.mark.parametrize(
    "groups", [3, [3], [{}], [{"names": [3], "options": None}], [{"names": [], "options": 3}]]
)
def test_groups_that_cannot_be_read(groups):
    with pytest.raises(CheckpointError, match="optimizer_groups cannot be read"):
        checked_groups(groups)


def test_sizes_that_contradict_the_names():
    handler = make()
    saved, groups = handler.optimizer.state_dict(), describe_groups(handler.parts)
    groups[0]["names"].pop()
    with pytest.raises(CheckpointError, match=r"groups of \[4\] parameters, but the names of 3"):
        align(handler.parts, saved, groups)


def test_parameters_of_the_loss_and_others_have_names_that_say_so():
    handler = NNHandler(Net, "cpu", seed=0)
    loss, other = nn.BCEWithLogitsLoss(), nn.Parameter(torch.ones(1))
    loss.scale = nn.Parameter(torch.ones(1))
    handler.set_loss_fn(loss)
    handler.set_optimizer(SGD, params=lambda m: [m.head.bias, other, loss.scale], lr=0.1)
    groups = describe_groups(handler.parts)
    assert groups[0]["names"] == ["head.bias", "other:0", "loss:scale"]
    assert not are_of_model(groups)
    assert describe_groups(NNHandler(Net, "cpu").parts) is None


def test_groups_are_made_again_without_those_that_were_added():
    handler = make(params=no_decay)
    handler.optimizer.param_groups[0]["lr"] = 9.0
    groups = [*describe_groups(handler.parts), {"names": ["head.bias"], "options": None}]
    made = make_groups(groups, handler.module)
    assert [group["lr"] for group in made] == [0.1, 0.1]
    assert made[1]["params"] == [handler.module.body.bias, handler.module.head.bias]
    assert len(list(make_groups(groups, nn.Linear(1, 1)))) == 2


def test_added_groups_replace_those_that_were_added_before():
    handler = make(params=head)
    optimizer, body = handler.optimizer, handler.module.body
    assert add_groups(optimizer, 1, []) == []
    add_groups(optimizer, 1, [{"params": [body.weight], "lr": 0.5}])
    optimizer.add_param_group({"params": body.weight})
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    sentences = add_groups(optimizer, 1, [{"params": [body.bias]}])
    assert sentences == [
        "optimizer group 1: dropped",
        "optimizer group 1: added as in the checkpoint",
    ]
    optimizer.add_param_group({"params": body.weight})
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 1]
