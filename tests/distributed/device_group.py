"""A stand-in for NCCL: a process group for tensors of the simulated accelerator, and for no others.

It refuses host tensors, as NCCL does. Its collectives travel through gloo, but the host waits for
them as it waits for a kernel: neither a closed connection of another group nor an exception on
another rank ends that, only ``abort`` does. After it every collective raises.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future

NAME = "standin"


class DeviceGroup(dist.ProcessGroup):
    """See above.

    Attributes:
        aborted: how often it was aborted.
        seen: the collectives that it was asked for.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self.aborted = 0
        self.seen: list[str] = []
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors: list[Tensor], opts: Any) -> Any:
        """All-reduce in place."""
        (tensor,) = tensors
        host = self._begin("allreduce", tensor)
        self._wait(self._gloo.allreduce([host], opts))
        tensor.copy_(host)
        return _done(tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:
        """Broadcast in place."""
        (tensor,) = tensors
        host = self._begin("broadcast", tensor)
        self._wait(self._gloo.broadcast([host], opts))
        tensor.copy_(host)
        return _done(tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        """All-gather, a tensor for each rank."""
        for part, found in zip(outputs[0], self._gathered(inputs[0]), strict=True):
            part.copy_(found)
        return _done(outputs)

    def all_gather_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Any:
        """All-gather into one tensor."""
        output.copy_(torch.cat([one.reshape(-1) for one in self._gathered(tensor)]).view_as(output))
        return _done([output])

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Any:
        """Reduce-scatter of one tensor."""
        host = self._begin("reduce_scatter", tensor)
        self._wait(self._gloo.allreduce([host], dist.AllreduceOptions()))
        if opts is not None and opts.reduceOp == dist.ReduceOp.AVG:
            host /= self.size()
        output.copy_(host.reshape(-1).chunk(self.size())[self.rank()].view_as(output))
        return _done([output])

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single  # torch 2.6

    def abort(self) -> None:
        """End what is waited for."""
        self.aborted += 1

    def shutdown(self) -> None:
        """Nothing has to be ended."""

    def getBackendName(self) -> str:  # noqa: N802  torch's name
        """As torch asks for it."""
        return NAME

    @property
    def group_name(self) -> str:
        """As torch registered it; its own property wants a backend that is written in C++."""
        return str(dist.distributed_c10d._world.pg_names[self])

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        host = self._begin("allgather", tensor)
        found = [torch.empty_like(host) for _ in range(self.size())]
        self._wait(self._gloo.allgather([found], [host]))
        return found

    def _begin(self, what: str, tensor: Tensor) -> Tensor:
        if tensor.device.type != "sim":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
        if self.aborted:
            raise RuntimeError("the communicator was aborted")
        self.seen.append(what)
        return tensor.cpu()

    def _wait(self, work: Any) -> None:
        while not work.is_completed():
            if self.aborted:
                raise RuntimeError("the communicator was aborted")
            time.sleep(0.001)
        work.wait()


def _done(result: Any) -> Any:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    return _create_work_from_future(future)


def register() -> None:
    """Make the backend known to torch under its name."""
    if NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(NAME, DeviceGroup, devices=["sim"])


# ---- what FSDP asks of a device -----------------------------------------------------------------


def prepare_for_fsdp(sim: Any) -> None:
    """Streams and events, which all are the host's, and memory that is never given back."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    class Stream:
        def __init__(self, *args: Any, **options: Any) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

        def wait_event(self, event: Any) -> None: ...

        def record_event(self, event: Any = None) -> Any:
            return Event()

        def synchronize(self) -> None:
            sim.simulation.finish()

    class Event:
        def __init__(self, *args: Any, **options: Any) -> None: ...

        def record(self, stream: Any = None) -> None: ...

        def wait(self, stream: Any = None) -> None: ...

        def synchronize(self) -> None:
            sim.simulation.finish()

    module: Any = torch.get_device_module("sim")
    kind = module if isinstance(module, type) else type(module)
    kind.Stream, kind.Event = Stream, Event
    kind.stream = staticmethod(lambda stream: nullcontext())
    kind.current_stream = staticmethod(lambda device=None: Stream())
    # torch asks a backend in C++ to resize storages
    _fsdp_param.alloc_storage = _fsdp_param.free_storage = lambda tensor: None
