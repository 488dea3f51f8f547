"""Values that are computed again; tests/distributed/test_deferred_values.py has whole modules."""

from __future__ import annotations

import torch

from fitkit.distributed.value_history import History, Step


def bytes_of(tensor):
    return tensor.untyped_storage().nbytes()


def test_a_view_is_made_again_with_the_steps_that_it_had():
    aten = torch.ops.aten
    made = Step(aten.arange.default, (6.0,), {}, None, None)
    history = History(24, [made])
    columns = torch.arange(6.0).view(2, 3)[:, 1:]
    view = history.view(columns)
    history.steps.append(Step(aten.zero_.default, (), {}, view, None))
    assert torch.equal(view.again(), columns)
    expected = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert torch.equal(history.view(expected).again(), expected)


def test_numbers_are_drawn_after_those_of_the_arguments():
    state = torch.get_rng_state()
    first, second = torch.rand(4), torch.rand(4)
    torch.set_rng_state(state)
    drawn = Step(torch.ops.aten.rand.default, ([4],), {}, None, state)
    torch.rand(4)
    source = History(bytes_of(first), [drawn]).view(first)
    like = Step(torch.ops.aten.rand_like.default, (source,), {}, None, torch.get_rng_state())
    assert torch.equal(History(bytes_of(second), [like]).view(second).again(), second)
