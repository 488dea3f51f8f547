"""Telling tensors without importing torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fitkit.core.is_tensor import is_tensor


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(2), True),
        (torch.nn.Parameter(torch.ones(2)), True),
        (torch.ones(2, device="meta"), True),
        (np.ones(2), False),
        ([1.0], False),
        (None, False),
        (torch.Tensor, False),
    ],
)
def test_tensors_and_their_subclasses(value, expected):
    assert is_tensor(value) is expected


def test_nothing_is_a_tensor_before_torch_is_imported():
    code = "from fitkit.core.is_tensor import is_tensor; import sys; assert not is_tensor(1)"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
