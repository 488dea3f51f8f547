"""DeferredValues: builds a module without holding the values of all of its parameters.

Inside ``with`` the module's constructor runs as always, on real memory, and draws its random
numbers as always. The memory of a large tensor is freed as soon as another tensor is computed,
because what was done to it is recorded: it is done again, with the same random numbers, whenever
something reads the tensor. A tensor that was computed from several large ones, or read from a file,
stays, and so do all when the constructor starts a thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fitkit.distributed.raw_access import RawAccess
from fitkit.distributed.value_history import History, Step, replaced

MIN_BYTES = 1 << 16  # smaller tensors keep their memory

_WITHOUT_VALUES = {"empty", "empty_strided", "empty_like", "new_empty"}
_FACTORIES = _WITHOUT_VALUES | {"zeros", "ones", "full", "rand", "randn", "arange", "eye"}
# what they leave does not depend on what was there
_FILLS = {"normal_", "uniform_", "fill_", "zero_", "random_", "exponential_", "log_normal_"}
_READ_NOTHING = {"detach", "alias", "lift_fresh"}
_RESIZES = {"resize_", "resize_as_", "set_"}


class DeferredValues:
    """Records how the tensors of a module get their values; see above."""

    def __init__(self) -> None:
        self._histories: WeakKeyDictionary[Any, History] = WeakKeyDictionary()
        self._in_memory: list[Any] = []  # those of them whose memory is to be freed next
        self._modes = ExitStack()
        self._is_filling = self._is_stopped = False

    def __enter__(self) -> DeferredValues:
        self._modes.enter_context(RawAccess(self.restore, self._stop))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._modes.close()
        self._in_memory.clear()

    def restore_all_but(self, module: nn.Module) -> None:
        """Restore every tensor that is not a parameter of ``module``."""
        parameters = {id(it.untyped_storage()) for it in module.parameters() if _has_storage(it)}
        for storage in list(self._histories):
            if id(storage) not in parameters:
                self._restore(storage)

    def restore(self, tensors: Iterable[Tensor], *, with_values: bool = True) -> None:
        """Give tensors memory again; ``with_values=False``: of any content, for rank 0's values."""
        for tensor in filter(_has_storage, tensors):
            self._restore(tensor.untyped_storage(), with_values=with_values)

    def _restore(self, storage: Any, *, with_values: bool = True) -> None:
        self._fill(storage, with_values=with_values)
        self._forget(storage)

    @torch.no_grad()
    def _fill(self, storage: Any, *, with_values: bool = True) -> None:
        """Give a storage that was freed its memory, and its values."""
        history = self._histories.get(storage)
        if history is None or storage.nbytes():
            return
        storage.resize_(history.num_bytes)
        if not with_values:
            return
        self._is_filling, before = True, torch.get_rng_state()
        try:
            for step in history.steps:
                step.apply_to(storage)
        finally:
            torch.set_rng_state(before)
            self._is_filling = False

    def _forget(self, storage: Any) -> None:
        self._histories.pop(storage, None)

    # ---- while the constructor runs --------------------------------------------------------------

    def _stop(self) -> None:
        """Restore every tensor, and defer none from now on."""
        self._is_stopped = True
        for storage in list(self._histories):
            self._restore(storage)

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation of the constructor; record it, and free what it does not use."""
        tensors = [it for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)]
        name = operation.overloadpacket.__name__
        if self._is_filling or self._is_stopped or name in _READ_NOTHING:
            return operation(*args, **kwargs)
        is_fill = name in _FILLS and len(tensors) == 1
        for tensor in filter(_has_storage, tensors):
            keeps_nothing = is_fill and self._covers_storage(tensor)
            self._fill(tensor.untyped_storage(), with_values=not keeps_nothing)
        is_random = torch.Tag.nondeterministic_seeded in operation.tags
        state = torch.get_rng_state() if is_random else None
        result = operation(*args, **kwargs)
        made = [it for it in tree_leaves(result) if isinstance(it, Tensor)]
        self._record(operation, args, kwargs, tensors, made, state)
        used = [it.untyped_storage() for it in (*tensors, *made) if _has_storage(it)]
        for storage in self._in_memory:
            if storage in self._histories and not any(storage is it for it in used):
                storage.resize_(0)
                return_memory()
        self._in_memory = [storage for storage in used if storage in self._histories]
        return result

    def _record(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        made: list[Tensor],
        state: Tensor | None,
    ) -> None:
        name = operation.overloadpacket.__name__
        is_repeatable = kwargs.get("generator") is None and name not in _RESIZES
        written = [it for it in _written(operation, args, kwargs) if _has_storage(it)]
        for tensor in written:
            storage = tensor.untyped_storage()
            history = self._histories.get(storage)
            if history is None:
                continue
            others = self._repeatable(args[1:], kwargs) if tensor is args[0] else None
            if others is None or not is_repeatable:
                self._forget(storage)
                continue
            if name in _FILLS and self._covers_storage(tensor):
                history.steps.clear()
            changed = replace(history.view(tensor), steps=())
            history.steps.append(Step(operation, *others, changed, state))
        if written or len(made) != 1 or not _has_storage(made[0]):
            return
        (tensor,) = made
        storage = tensor.untyped_storage()
        is_view = any(storage is it.untyped_storage() for it in tensors if _has_storage(it))
        if is_view or storage.nbytes() < MIN_BYTES or not storage.resizable():
            return
        others = self._repeatable(args, kwargs)
        if name in _WITHOUT_VALUES:
            self._histories[storage] = History(storage.nbytes(), [])
        elif others is not None and is_repeatable:
            if name in _FACTORIES:
                others[1]["dtype"] = tensor.dtype  # the default may be another one later
            step = Step(operation, *others, None, state)
            self._histories[storage] = History(storage.nbytes(), [step])

    def _repeatable(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments to repeat an operation with; ``None``: that would take several large tensors.

        Small tensors are copied.
        """
        tensors = [it for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)]
        large = [it for it in tensors if it.nbytes >= MIN_BYTES or not _has_storage(it)]
        if len(large) > 1 or any(self._history_of(it) is None for it in large):
            return None

        def kept(tensor: Tensor) -> Any:
            history = self._history_of(tensor)
            return tensor.clone() if history is None else history.view(tensor)

        found: tuple[tuple[Any, ...], dict[str, Any]] = replaced(Tensor, kept, (args, kwargs))
        return found

    def _history_of(self, tensor: Tensor) -> History | None:
        return self._histories.get(tensor.untyped_storage()) if _has_storage(tensor) else None

    def _covers_storage(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is all of a storage whose history is known."""
        history = self._history_of(tensor)
        is_dense = tensor.is_contiguous() and tensor.storage_offset() == 0
        return history is not None and is_dense and tensor.nbytes == history.num_bytes


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, values: DeferredValues) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values = values

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # noqa: SLF001  else the other mode sees this one
            return self._values.run(func, args, kwargs or {})


def return_memory() -> None:
    """Have the C library return freed memory to the system; glibc keeps what is under 32 MB."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None


def _has_storage(tensor: Any) -> bool:
    """Whether it is a tensor with values of its own in the host's memory."""
    if is_lazy(tensor) or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


def _written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation changes."""
    found = []
    for number, argument in enumerate(operation._schema.arguments):  # noqa: SLF001
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += tree_leaves(value)
    return found
