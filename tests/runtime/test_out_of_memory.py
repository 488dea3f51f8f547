import gc
import weakref

import pytest
import torch

from fitkit.runtime.out_of_memory import free_memory, is_out_of_memory


def test_the_allocator_s_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_what_says_that_memory_is_full(error, expected):
    assert is_out_of_memory(error) is expected


def test_what_refers_to_itself_is_freed_too():
    class Held:
        pass

    gc.disable()
    try:
        held = Held()
        held.itself = held
        seen = weakref.ref(held)
        del held
        assert seen() is not None
        free_memory()
        assert seen() is None
    finally:
        gc.enable()
