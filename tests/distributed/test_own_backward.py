"""Backward passes and optimizers inside a step; tests/scripts/steps_run.py has real processes."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import Share
from fitkit.distributed.own_backward import OwnBackward
from fitkit.distributed.world import World

SCRIPT = Path(__file__).parents[1] / "scripts" / "steps_run.py"
BACKWARD, CLOSURE, COMPARE, END = range(4)


class Two(World):
    """This rank, and another that does the same with ``samples`` samples and its own gradient."""

    size = 2

    def __init__(self, samples=3, gradient=10.0, loss=5.0):
        self.samples, self.gradient, self.loss = samples, gradient, loss
        self.events = []
        self.other = None  # what the other does in place of the same

    def sum(self, sums):
        (event,) = sums[:4].nonzero().flatten().tolist()
        self.events.append(event)
        theirs = torch.zeros_like(sums)
        theirs[event if self.other is None else self.other] = 1
        theirs[4] = self.samples
        if event == CLOSURE:
            theirs[5] = self.samples * self.loss
        if event == END:
            theirs[6:] = sums[6:]
        return sums + theirs

    def largest(self, values):
        return [1] * len(values)

    def sum_in_place(self, tensor):
        tensor += self.gradient * self.weight

    @property
    def weight(self):
        return self.samples / (self.samples + 1)

    def gather_all(self, value):
        return [value, value]


@pytest.fixture
def weight():
    return nn.Parameter(torch.zeros(1))


@pytest.fixture
def make_own(weight):
    made = []

    def make(world):
        named = {"weight": weight}
        made.append(OwnBackward(world, lambda: named))
        return made[-1]

    yield make
    for own in made:
        own.close()


def one_sample():
    return Share(1, None)


def test_each_pass_adds_the_mean_weighted_by_samples(make_own, weight):
    own, mean = make_own(Two()), (2.0 + 3 * 10.0) / 4
    with own.during_step(one_sample):
        (2 * weight).sum().backward()
        assert weight.grad.item() == mean
        before = weight.grad
        (2 * weight).sum().backward()  # what is there already is not averaged again
        assert weight.grad.item() == 2 * mean
        assert weight.grad is before


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_rank_without_samples_adds_nothing(make_own, weight, value):
    own = make_own(Two())
    with own.during_step(lambda: Share(0, None)):
        (value * weight).sum().backward()
    assert weight.grad.item() == 10.0 * 3 / 4


def test_outside_of_a_step_gradients_are_those_of_the_rank(make_own, weight):
    own, world = make_own(Two()), Two()
    with own.during_step(one_sample):
        pass
    (2 * weight).sum().backward()
    assert weight.grad.item() == 2.0
    assert world.events == []


def test_closing_removes_the_hooks(make_own, weight):
    own = make_own(Two())
    with own.during_step(one_sample):
        pass
    assert weight._backward_hooks
    own.close()
    assert not weight._backward_hooks


def test_a_frozen_parameter_may_be_unfrozen_in_the_step(make_own, weight):
    own = make_own(Two())
    weight.requires_grad_(False)
    with own.during_step(one_sample):
        assert not weight.requires_grad
        weight.requires_grad_(True)
        (2 * weight).sum().backward()
    assert weight.grad.item() == 8.0


def test_a_closure_returns_the_mean_loss(make_own, weight):
    own, seen = make_own(Two()), []
    sgd = torch.optim.SGD([weight], lr=0.1)

    def closure():
        loss = (2 * weight).sum() + 1
        loss.backward()
        return loss

    with own.during_step(one_sample):
        seen = [sgd.step(closure), sgd.step(closure=closure)]
    assert [float(loss) for loss in seen] == pytest.approx([16 / 4, 14.4 / 4])


@pytest.mark.parametrize(
    ("other", "done"),
    [(END, "1 called backward and 1 ended the step"), (CLOSURE, "1 called backward and 1 called")],
)
def test_ranks_that_do_different_things_raise_alike(make_own, weight, other, done):
    world = Two()
    own, world.other = make_own(world), other
    with pytest.raises(ConfigurationError, match=done), own.during_step(one_sample):
        (2 * weight).sum().backward()


def test_a_skipped_batch_while_another_rank_calls_backward(make_own):
    world = Two()
    own, world.other = make_own(world), BACKWARD
    with own.during_step(one_sample):
        pass
    with pytest.raises(ConfigurationError, match="1 called backward and 1 ended the step"):
        own.end(0, 0, is_own=False)


@pytest.mark.parametrize(("index", "message"), [(6, "1 of 2 ranks returned"), (7, "0 times on")])
def test_steps_that_end_differently(make_own, index, message):
    class Other(Two):
        def sum(self, sums):
            theirs = sums.clone()
            theirs[index] += 1
            theirs[8] += index == 7
            return sums + theirs

    own = make_own(Other())
    with own.during_step(one_sample):
        pass
    with pytest.raises(ConfigurationError, match=message):
        own.end(1, 1, is_own=False)


def test_counts_of_all_ranks(make_own):
    own = make_own(Two())
    with own.during_step(one_sample):
        pass
    assert own.end(4, 0.5, is_own=False) == (7.0, 0.5)


def test_gradients_are_compared_at_the_first_step_of_each_optimizer(make_own, weight):
    world = Two()
    own = make_own(world)
    sgd = torch.optim.SGD([weight])
    for _ in range(2):
        with own.during_step(one_sample):
            sgd.step()
    assert world.events == [COMPARE]


def test_an_optimizer_of_other_parameters_is_refused_if_it_outlives_the_step(make_own):
    own = make_own(Two())
    other = nn.Linear(1, 1)
    with own.during_step(one_sample):
        torch.optim.SGD(copy.deepcopy(other).parameters()).step()
    sgd = torch.optim.SGD(other.parameters())
    with (
        pytest.raises(ConfigurationError, match=r"steps SGD .* a part of the model"),
        own.during_step(one_sample),
    ):
        sgd.step()


def test_optimizers_outside_of_a_step_are_left_alone(make_own):
    own, world = make_own(Two()), Two()
    with own.during_step(one_sample):
        pass
    torch.optim.SGD(nn.Linear(1, 1).parameters()).step()
    assert world.events == []


# ---- real processes -----------------------------------------------------------------------------

REFUSED = {
    "second network": "a part of the model",
    "assigned gradients": "'scale'.* the norm .* on rank 0, the norm .* on rank 1",
    "assigned gradients before the loss": "'scale'.* the norm .* on rank 0, the norm .* on rank 1",
    "weights changed by hand": "the ranks train different models: 'scale' has the norm",
    "skipped on one rank": "1 called backward and 1 ended the step",
    "an optimizer step on one rank": "a different number of times",
    "a backward pass for fit on one rank": "1 of 2 ranks returned",
    "unused on one rank": "no gradient to 'scale'.* on rank 0.*find_unused_parameters=True",
    "sharded: both a block and its parts": "a block or the modules inside it",
}


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_ranks_cannot_take_as_one_ends_all_of_them(name, tmp_path, kit):
    command = [*kit.torchrun(2), str(SCRIPT), str(tmp_path), name]
    ended = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    found = [(tmp_path / f"rank{rank}.json").read_text() for rank in (0, 1)]
    for text in found:
        assert '"error": "' in text, ended.stderr
    assert any(re.search(REFUSED[name], text) for text in found), found
