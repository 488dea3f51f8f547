"""A simulated accelerator: a device of its own in torch, on a build without any.

``torch.device("sim:0")`` is registered as torch's ``PrivateUse1`` backend. Its tensors are plain
tensors with real values in host memory, which only the kernels here may touch: each runs the CPU's
kernel on the same memory. So results are bit for bit reproducible, and what a real accelerator
would do to a careless program happens here too:

- tensors of different devices in one operation are an error, scalars of the host excepted;
- with ``float64`` off, a float64 or complex128 result is an error, as on MPS;
- whatever the host has to wait for is noted, with the line that asked for it;
- a copy to the host with ``non_blocking=True`` delivers nothing until the device is waited for;
- memory that such a copy to the device reads from must not change before that;
- the device has a random generator of its own;
- memory in use is counted.

Real streams, events, kernels that differ from the CPU's, and NCCL are not simulated.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration

NAME, COUNT = "sim", 2
_DLPACK_CPU, _DLPACK_PRIVATE = 1, 12

# Operations whose result the host has to know before the program goes on.
_READS = (
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim",
    "_unique", "_unique2", "unique_consecutive", "is_set_to",
)  # fmt: skip
# Operations that only say how memory is seen.
_OF_METADATA = ("as_strided", "view", "_reshape_alias", "unfold", "set_", "_unsafe_view")
_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_HOST = torch.device("cpu")
_WIDE = (torch.float64, torch.complex128)


class _DLTensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
    ]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _seen_as(tensor: Tensor, kind: int, index: int = 0) -> Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch._C._to_dlpack(tensor)
    described = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    described.device_type, described.device_id = kind, index
    return torch._C._from_dlpack(capsule)


class Simulation:
    """What happens on the device, and what it refuses.

    Attributes:
        float64: whether the device computes in float64.
        waits: what the host waited for: the operation and the line of the program.
        copies: copies that the host did not wait for: direction, whether its end on the host was
            pinned, and the line.
        overwritten: lines whose asynchronous copy to the device read memory that changed too early.
        allocated: bytes in use.
        peak: the most there were since ``reset_peak``.
        pinned: addresses of pinned host memory.
        pinned_kept: bytes pinned since the cache of pinned memory was emptied.
        current: the index of the device that plain ``"sim"`` means.
    """

    def __init__(self) -> None:
        self.generators = [torch.Generator() for _ in range(COUNT)]
        self.reset()

    def reset(self, *, float64: bool = True) -> None:
        self.is_on = False
        self.float64 = float64
        self.waits: list[tuple[str, str]] = []
        self.copies: list[tuple[str, bool, str]] = []
        self.overwritten: list[str] = []
        self.pending: list[Any] = []
        self.pinned: set[int] = set()
        self.pinned_kept = 0
        self.allocated = getattr(self, "allocated", 0)
        self.peak = self.allocated
        self.current = 0
        for index, generator in enumerate(self.generators):
            generator.manual_seed(1000 + index)

    def reset_peak(self) -> None:
        self.peak = self.allocated

    def wait(self, what: str) -> None:
        """The host waits for everything that was begun."""
        self.waits.append((what, _line()))
        self.finish()

    def finish(self) -> None:
        pending, self.pending = self.pending, []
        for deliver in pending:
            deliver()

    def waits_by_line(self) -> dict[tuple[str, str], int]:
        return dict(Counter(self.waits))

    def allocate(self, size: int) -> Any:
        """So many bytes, which are counted for as long as a tensor is in them."""
        memory = np.empty(size, dtype=np.uint8)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(memory, self._freed, size)
        return memory

    def _freed(self, size: int) -> None:
        self.allocated -= size


def _line() -> str:
    """The innermost line of fitkit or of a test that is being executed."""
    frame = sys._getframe(1)  # traceback.extract_stack reads the text of every line
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and "/site-packages/" not in name:
            for part in ("/fitkit/", "/tests/"):
                if part in name:
                    return f"{name.rpartition(part)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


simulation = Simulation()


# ---- kernels ------------------------------------------------------------------------------------


def _is_here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _on_host(tensor: Tensor) -> Tensor:
    """The tensor's memory as the CPU's."""
    if tensor.is_conj() or tensor.is_neg():
        raise NotImplementedError("lazy conjugates are not simulated")
    return _seen_as(tensor.detach(), _DLPACK_CPU)


def _as_new(tensor: Tensor, index: int) -> Tensor:
    """What a kernel of the CPU made, as memory of the device."""
    _require_possible(tensor.dtype)
    if tensor.layout is not torch.strided:
        raise NotImplementedError("sparse tensors are not simulated")
    furthest = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = simulation.allocate((furthest + 1) * tensor.itemsize if tensor.numel() else 0)
    own = torch.empty(0, dtype=tensor.dtype).set_(
        torch.from_numpy(memory).untyped_storage(), 0, tensor.shape, tensor.stride()
    )
    return _seen_as(own.copy_(tensor), _DLPACK_PRIVATE, index)


def _require_possible(dtype: torch.dtype) -> None:
    if dtype in _WIDE and not simulation.float64:
        raise TypeError(
            f"Cannot convert a {NAME} Tensor to {dtype} dtype as the {NAME} framework doesn't "
            f"support it"
        )


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation: the CPU's kernel on the same memory."""
    name = op.overloadpacket.__name__
    if name in _OF_METADATA:  # the CPU's kernels look at no memory
        return op.redispatch(_CPU_KEYS, *args, **kwargs)
    tensors: list[Tensor] = []
    named: list[torch.device] = []
    host_args = [_seen_on_host(value, tensors, named) for value in args]
    host_kwargs = {key: _seen_on_host(value, tensors, named) for key, value in kwargs.items()}
    index = _index_of(tensors, named, name)
    if name in _READS:
        simulation.wait(name)
    host_kwargs.pop("pin_memory", None)
    outs = [argument.name for argument in op._schema.arguments if argument.is_out]
    targets = {name: host_kwargs[name] for name in outs}
    for name in outs:
        host_kwargs[name] = torch.empty(0, dtype=kwargs[name].dtype)
    with _drawing(op, index, host_kwargs):
        result = op(*host_args, **host_kwargs)
    for name, target in targets.items():
        found = host_kwargs[name]
        if target.shape == found.shape:
            target.copy_(found)
        else:
            kwargs[name].data = _as_new(found, index)
    return _results(op, args, kwargs, result, index)


def _seen_on_host(value: Any, tensors: list[Tensor], named: list[torch.device]) -> Any:
    """An argument for the CPU's kernel; what it holds of tensors and devices joins the lists."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _on_host(value) if _is_here(value) else value
    if isinstance(value, torch.device):
        named.append(value)
        return _HOST
    if isinstance(value, (list, tuple)):
        return type(value)([_seen_on_host(one, tensors, named) for one in value])
    return value


def _index_of(tensors: list[Tensor], named: list[torch.device], name: str) -> int:
    """The one device of an operation."""
    here = {tensor.device.index for tensor in tensors if _is_here(tensor)}
    # a scalar of the host may take part, except where tensors are put together
    strangers = [t for t in tensors if not _is_here(t) and (t.ndim or name in ("cat", "stack"))]
    if len(here) > 1 or (here and strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} found "
            f"{[(str(t.device), tuple(t.shape)) for t in tensors][:6]}"
        )
    chosen = [*here, *(device.index for device in named if device.type == NAME)]
    return simulation.current if not chosen or chosen[0] is None else chosen[0]


@contextmanager
def _drawing(op: Any, index: int, kwargs: dict[str, Any]) -> Iterator[None]:
    """Inside ``with`` the CPU's generator stands where the device's does."""
    if torch.Tag.nondeterministic_seeded not in op.tags or kwargs.get("generator") is not None:
        yield
        return
    outside = torch.get_rng_state()
    torch.set_rng_state(simulation.generators[index].get_state())
    try:
        yield
    finally:
        simulation.generators[index].set_state(torch.get_rng_state())
        torch.set_rng_state(outside)


def _results(op: Any, args: Any, kwargs: Any, result: Any, index: int) -> Any:
    """What an operation returned: the tensors it wrote to, views of the device's memory, or new."""
    schema = op._schema
    given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    if not schema.returns:
        return None
    written = {
        letter: given[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
        for letter in a.alias_info.before_set
    }
    several = len(schema.returns) > 1
    found = []
    for declared, one in zip(schema.returns, result if several else [result], strict=True):
        alias = declared.alias_info
        if alias is not None and alias.is_write:
            found.append(written[next(iter(alias.before_set))])
        elif alias is not None:
            raise NotImplementedError(f"{op} is not simulated: it returns a view")
        else:
            found.append(_mapped(lambda t: _as_new(t, index), one))
    return tuple(found) if several else found[0]


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(function(v) for v in value) if isinstance(value, (list, tuple)) else value


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """``target.copy_(source)`` where one of them is on the device."""
    if _is_here(source) and _is_here(target):
        _on_host(target).copy_(_on_host(source))
    elif _is_here(target):
        _to_device(source, target, non_blocking)
    else:
        _to_host(source, target, non_blocking)
    return target


def _to_device(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    _on_host(target).copy_(source)
    if not non_blocking:
        simulation.wait("copy to the device")
        return
    is_pinned, line, before = source.is_pinned(), _line(), source.clone()
    simulation.copies.append(("to the device", is_pinned, line))

    def look() -> None:
        same = torch.equal(_bits(source), _bits(before))
        simulation.overwritten += [] if same else [line]

    simulation.pending.append(look)


def _to_host(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    if not non_blocking:
        simulation.wait("copy to the host")
        target.copy_(_on_host(source))
        return
    simulation.copies.append(("to the host", target.is_pinned(), _line()))
    arriving = _on_host(source).clone()
    target.fill_(float("nan") if target.is_floating_point() else 1)
    simulation.pending.append(lambda: target.copy_(arriving))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _to_copy(tensor: Tensor, **options: Any) -> Tensor:
    """``tensor.to(...)``: torch would take pinned memory for a copy that nobody waits for."""
    device = torch.device(options.get("device") or tensor.device)
    layout = {"dtype": options.get("dtype") or tensor.dtype, "device": device}
    target = torch.empty_like(tensor, **layout)
    if device.type == "cpu" and options.get("non_blocking"):
        target = target.pin_memory()
    converted = tensor if tensor.dtype == target.dtype else _converted(tensor, target.dtype)
    return _copy_from(converted, target, bool(options.get("non_blocking")))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return _as_new(_on_host(tensor).to(dtype), tensor.device.index)


def _convolution(*args: Any) -> Tensor:
    return _kernel(torch.ops.aten.convolution.default, *args)


def _convolution_backward(
    grad: Tensor, inputs: Tensor, weight: Tensor, *args: Any
) -> tuple[Any, ...]:
    *geometry, mask = args
    found = _kernel(
        torch.ops.aten.convolution_backward.default,
        *(grad, inputs, weight, [weight.shape[0]], *geometry, mask),
    )
    return tuple(one if wanted else None for one, wanted in zip(found, mask, strict=True))


def _copy_from_and_resize(source: Tensor, target: Tensor) -> Tensor:
    target.resize_(source.shape)
    return _copy_from(source, target)


# ---- what torch asks of a backend ---------------------------------------------------------------


class _Module:
    """``torch.sim``, as ``torch.cuda`` is for CUDA."""

    @staticmethod
    def is_available() -> bool:
        return simulation.is_on

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return COUNT if simulation.is_on else 0

    @staticmethod
    def current_device() -> int:
        return simulation.current

    @staticmethod
    def set_device(device: Any) -> None:
        simulation.current = _index(device)

    @staticmethod
    @contextmanager
    def device(device: Any) -> Iterator[None]:
        before, simulation.current = simulation.current, _index(device)
        try:
            yield
        finally:
            simulation.current = before

    @staticmethod
    def synchronize(device: Any = None) -> None:
        simulation.wait("synchronize")

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed(seed: int) -> None:
        simulation.generators[simulation.current].manual_seed(seed)

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        for generator in simulation.generators:
            generator.manual_seed(seed)

    @staticmethod
    def get_rng_state(device: Any = NAME) -> Tensor:
        return simulation.generators[_index(device)].get_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = NAME) -> None:
        simulation.generators[_index(device)].set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return simulation.current if index is None else index


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return simulation.is_on

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


_libraries: list[Any] = []


@contextmanager
def switched_on(*, float64: bool = True) -> Iterator[Simulation]:
    """Inside ``with`` the device is there, as it was when the machine was switched on.

    Outside ``with`` torch knows its name, but it is not available.
    """
    register()
    simulation.reset(float64=float64)
    simulation.is_on = True
    with (
        mock.patch.object(Tensor, "pin_memory", _pin_memory),
        mock.patch.object(Tensor, "is_pinned", _is_pinned),
        mock.patch.object(Tensor, "__deepcopy__", _deepcopy),
        # the lowest torch has it under another name
        mock.patch.object(torch.accelerator, "empty_host_cache", _empty_host_cache, create=True),
    ):
        try:
            yield simulation
        finally:
            simulation.reset()


def _pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    if tensor.is_pinned():
        return tensor
    pinned = tensor.clone()
    storage = pinned.untyped_storage()
    simulation.pinned.add(storage.data_ptr())
    simulation.pinned_kept += storage.nbytes()
    weakref.finalize(storage, simulation.pinned.discard, storage.data_ptr())
    return pinned


def _deepcopy(tensor: Tensor, memo: dict[int, Any], usual: Any = Tensor.__deepcopy__) -> Tensor:
    """As torch's, which would ask the device for a storage of its own."""
    if not _is_here(tensor):
        return usual(tensor, memo)
    memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]


def _empty_host_cache() -> None:
    simulation.pinned_kept = 0


def _is_pinned(tensor: Tensor, device: Any = None) -> bool:
    return not _is_here(tensor) and tensor.untyped_storage().data_ptr() in simulation.pinned


def is_registered() -> bool:
    return bool(_libraries)


def register() -> None:
    """Make the device known to torch; before the first backward pass of the process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hook(), _Guard())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_kernel, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("_copy_from", _copy_from, "PrivateUse1")
    own.impl("_to_copy", _to_copy, "PrivateUse1")
    own.impl("convolution_overrideable", _convolution, "PrivateUse1")
    own.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    own.impl("_copy_from_and_resize", _copy_from_and_resize, "PrivateUse1")
    for name in torch._C._dispatch_get_all_op_names():
        # else torch would allocate the result of a functional form itself, and ask for it to grow
        by_torch = "CompositeExplicitAutogradNonFunctional"
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(
            name, by_torch
        ):
            packet, _, overload = name.removeprefix("aten::").partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            if not any(argument.is_out for argument in op._schema.arguments):
                own.impl(name.removeprefix("aten::"), partial(_kernel, op), "PrivateUse1")
    for key in ("AutocastPrivateUse1",):  # autocast leaves types as they are
        everything.fallback(torch.library.fallthrough_kernel, key)
    _libraries.extend((everything, own))
