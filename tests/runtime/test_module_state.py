"""What is restored of a module: modes, gradients, buffers; parameters are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.core.state_placement import copy_to_host
from fitkit.runtime.module_state import preserve_module_state
from fitkit.testing import differences


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 1)
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.register_buffer("empty", None)


@pytest.fixture
def module():
    module = Net()
    module.norm.eval()
    module.head.weight.grad = torch.ones(1, 2)
    module.head.bias.requires_grad_(False)
    return module


def seen(module):
    return {
        "modes": [part.training for part in module.modules()],
        "buffers": {name: buffer.clone() for name, buffer in module.named_buffers()},
        "requires": [p.requires_grad for p in module.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
    }


def change(module):
    module.train()
    module.requires_grad_(True)
    module.head(module.norm(torch.ones(4, 2))).sum().backward()
    module.cache += 1
    module.head.eval()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_but_parameters_is_restored(module, fails):
    before = seen(module)

    def use():
        with preserve_module_state(module, copy_to_host):
            change(module)
            assert list(differences(before, seen(module)))
            with torch.no_grad():
                module.head.weight.fill_(7)
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert not list(differences(before, seen(module)))
    assert module.head.weight.tolist() == [[7.0, 7.0]]


def test_gradients_are_cleared_inside_and_are_the_same_tensors_after(module):
    gradient = module.head.weight.grad
    with preserve_module_state(module, copy_to_host):
        assert all(p.grad is None for p in module.parameters())
        change(module)
    assert module.head.weight.grad is gradient
    assert gradient.tolist() == [[1.0, 1.0]]


def test_a_buffer_that_was_replaced_is_the_old_one_again(module):
    cache = module.cache
    with preserve_module_state(module, copy_to_host):
        cache += 5
        module.cache = torch.ones(9)  # a module may rebuild a cache in another shape
    assert module.cache is cache
    assert cache.tolist() == [0.0] * 3
    assert module.empty is None


def test_a_buffer_of_two_modules_stays_shared():
    module = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    module[1].running_mean = module[0].running_mean
    with preserve_module_state(module, copy_to_host):
        module[0].running_mean += 1
    assert module[1].running_mean is module[0].running_mean
    assert module[0].running_mean.tolist() == [0.0, 0.0]


def test_buffers_are_copied_by_the_map(module):
    copied = []
    with preserve_module_state(module, lambda tensor: copied.append(tensor) or tensor.clone()):
        pass
    assert {id(buffer) for buffer in copied} == {id(buffer) for buffer in module.buffers()}
