"""What reaches the memory of tensors without an operation is announced before."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fitkit.distributed.deferred_values import DeferredValues
from fitkit.distributed.raw_access import RawAccess

WIDE = 160  # a square of so many numbers is large enough to be freed


class Own(nn.Parameter):
    """A kind of parameter of the user's."""


def on_threads(call):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, range(4)))


def sum_own(a, b):
    own = Own(torch.randn(WIDE, WIDE))
    nn.init.uniform_(b)  # frees the memory of others
    return own.data.add_(1).clone()


ACCESSES = {
    "a copied buffer": lambda a, b: copy.deepcopy(a),
    "a function of Python's": lambda a, b: a.apply_(lambda value: value + 1),
    "two tensors": lambda a, b: a.map_(b, lambda one, other: one + other),
    "text": lambda a, b: str(a),
    "a format": lambda a, b: f"{a[0, 0]:.3f}",
    "a list of numbers": lambda a, b: torch.tensor([a[0, 0], b[0, 0]]),
    "a copy": lambda a, b: torch.tensor(a),
    "a kind of parameter": sum_own,
    "threads that write": lambda a, b: torch.stack(on_threads(lambda row: a[row].fill_(row))),
    "threads that read": lambda a, b: torch.stack(on_threads(lambda row: b[row].sum())),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("kind", ACCESSES)
def test_memory_is_there_when_it_is_reached(kind):
    """Each was an error, or ended the process, while the memory was freed."""

    def build():
        torch.manual_seed(0)
        first, second, third = (torch.randn(WIDE, WIDE) for _ in range(3))
        seen = ACCESSES[kind](first, second)
        return [first, second, third, seen]

    plain = build()
    with DeferredValues() as values:
        deferred = build()
    values.restore_all_but(nn.Module())
    for expected, found in zip(plain, deferred, strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected)
        else:
            assert found == expected


def test_a_thread_is_announced_and_only_inside():
    start, calls = threading.Thread.start, []
    with RawAccess(list, lambda: calls.append(threading.get_ident())):
        on_threads(lambda row: None)
    assert calls
    assert set(calls) == {threading.get_ident()}
    assert threading.Thread.start is start


def test_initializing_again_exposes_nothing():
    """torch's own trunc_normal_ calls ``new_tensor``, which does not read the tensor."""
    with DeferredValues() as values:
        layers = nn.ModuleList(nn.Linear(WIDE, WIDE) for _ in range(3))
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
    values.restore_all_but(layers)
    held = [it.weight.untyped_storage().nbytes() for it in layers]
    assert held[:2] == [0, 0]
