"""RawAccess: notices that a program is about to reach the memory of tensors without an operation.

A ``TorchDispatchMode`` sees the operations of its own thread, and not what reads or writes memory
directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_FUNCTIONS = {"numpy", "tolist", "data_ptr", "untyped_storage", "storage", "_typed_storage"}
_FUNCTIONS |= {"__array__", "__deepcopy__", "__dlpack__", "__reduce_ex__", "__repr__", "__format__"}
_FUNCTIONS |= {"apply_", "map_", "map2_", "set_", "share_memory_", "pin_memory"}
_FUNCTIONS |= {"tensor", "as_tensor", "asarray", "new_tensor"}  # torch hides what they read


class RawAccess(TorchFunctionMode):
    """Inside ``with``, calls ``expose`` before memory is reached without an operation.

    Args:
        expose: called with the tensors.
        expose_all: called before the program starts a thread, which may reach any tensor.
    """

    def __init__(
        self, expose: Callable[[Iterable[Tensor]], None], expose_all: Callable[[], None]
    ) -> None:
        super().__init__()
        self._expose, self._expose_all = expose, expose_all
        self._start = threading.Thread.start

    def __enter__(self) -> RawAccess:
        self._start, own = threading.Thread.start, threading.get_ident()

        def start(thread: threading.Thread) -> None:
            if threading.get_ident() == own:
                self._expose_all()
            self._start(thread)

        # Python has no hook for it that runs before the thread
        threading.Thread.start = start  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)  # type: ignore[no-untyped-call]
        threading.Thread.start = self._start  # type: ignore[method-assign]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", None)
        if name in _FUNCTIONS:
            read = args[1:] if name == "new_tensor" else args  # of itself it takes only the type
            self._expose(it for it in tree_leaves((read, kwargs)) if isinstance(it, Tensor))
        return func(*args, **(kwargs or {}))
