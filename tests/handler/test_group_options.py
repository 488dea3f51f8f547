"""Options of parameter groups: what a program changed, and what then becomes of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, AdamW

from fitkit.handler.group_options import (
    change_options,
    differs,
    has_changed,
    options_of,
    put_options,
    text_of_change,
)


def make(cls=SGD, **options):
    return cls(nn.Linear(2, 1).parameters(), **options)


def test_options_are_copies_without_parameters():
    optimizer = make(AdamW, lr=torch.tensor(0.5), foreach=False)
    options = options_of(optimizer)
    assert "params" not in options[0]
    optimizer.param_groups[0]["lr"].fill_(3.0)
    assert options[0]["lr"] == 0.5


def test_options_that_are_put_back_replace_all_others():
    optimizer = make(lr=0.5)
    options = options_of(optimizer)
    members = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0].update(lr=9.0, initial_lr=1.0)
    put_options(optimizer, options)
    assert options_of(optimizer) == options
    assert optimizer.param_groups[0]["params"] is members


def test_a_changed_option_is_the_program_s_and_said():
    before, now = options_of(make(lr=0.5)), options_of(make(lr=2, weight_decay=0.1))
    optimizer = make(lr=0.5)
    assert change_options(optimizer, before, now) == [
        "optimizer lr: 0.5 -> 2",
        "optimizer weight_decay: 0 -> 0.1",
    ]
    assert options_of(optimizer) == now
    assert has_changed(before, now, {"lr"})
    assert not has_changed(before, now, {"momentum"})


def test_a_rate_that_the_run_changed_keeps_its_proportion():
    before, now = options_of(make(lr=0.5)), options_of(make(lr=2.0))
    optimizer = make(lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.125
    change_options(optimizer, before, now)
    assert optimizer.param_groups[0]["lr"] == 0.5
    other = make(lr=0.125)
    assert change_options(other, before, before) == []
    assert other.param_groups[0]["lr"] == 0.125


def test_a_rate_that_is_a_tensor():
    before = options_of(make(AdamW, lr=torch.tensor(0.5), foreach=False))
    now = options_of(make(AdamW, lr=torch.tensor(2.0), foreach=False))
    optimizer = make(AdamW, lr=torch.tensor(0.25), foreach=False)
    assert change_options(optimizer, before, now) == ["optimizer lr: 0.5 -> 2.0"]
    assert torch.equal(optimizer.param_groups[0]["lr"], torch.tensor(1.0))
    assert now[0]["lr"] == 2.0


def test_flags_of_the_implementation_and_groups_added_later_are_no_change():
    before, now = options_of(make(foreach=True)), options_of(make(foreach=False))
    assert change_options(make(), before, now) == []
    assert change_options(make(), [None], now) == []


def test_each_group_is_named():
    weight, bias = nn.Linear(2, 1).parameters()
    optimizer = SGD([{"params": [weight]}, {"params": [bias], "lr": 0.5}], lr=1.0)
    before = [{"lr": 1.0}, {"lr": 0.25}]
    assert change_options(optimizer, before, options_of(optimizer)) == [
        "optimizer lr of group 1: 0.25 -> 0.5"
    ]


def test_numbers_and_other_values_differ():
    assert not differs([1, 2.0], (1.0, 2))
    assert differs([1], [1, 2])
    assert differs(True, 1.0)
    assert text_of_change("A", {"a": 1, "b": 2}, {"a": 1.0, "c": 3}) == [
        "A b: 2 -> None",
        "A c: None -> 3",
    ]
