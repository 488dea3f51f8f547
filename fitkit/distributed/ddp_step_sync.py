"""DDPStepSync: a training step with ``DistributedDataParallel``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError
from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.compare_gradients import names_of
from fitkit.distributed.loss_gate import Counts, LossGate, with_gradients
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World


class DDPStepSync(StepSync):
    """Averages the gradients of model, loss and optimizer with one ``DistributedDataParallel``.

    It wraps an identity that the loss goes through, so a step may call any part of the model. Its
    forward pass prepares the reducer, the backward pass of the loss runs its hooks. Batches that do
    not fill an accumulation window do without it, as in ``no_sync``.
    """

    def __init__(
        self,
        modules: TrainedModules,
        optimizer: Optimizer | None,
        world: World,
        options: Mapping[str, Any],
        *,
        is_custom: bool = False,
    ) -> None:
        super().__init__(modules, optimizer, world, is_custom=is_custom)
        self._options = options
        self._requires_grad: list[bool] = []
        self._ddp: DistributedDataParallel | None = None
        if optimizer is None:  # then steps have backward passes of their own
            world.copy_from_main([p.detach() for p in self.named_parameters().values()])
            world.copy_from_main(modules.buffers())
        else:
            self._update()
        # autograd needs the weights as they are: DDP must not copy them a second time
        self._options = {**options, "init_sync": False}
        self._copies_buffers = _copies_buffers(options) and any(True for _ in modules.buffers())

    def _update(self) -> DistributedDataParallel | None:
        """DDP over all that is trained now; ``None``: nothing is.

        It is built again if the program has frozen, unfrozen or added parameters.
        """
        named, options = self.named_parameters(), self._options
        requires_grad = [p.requires_grad for p in named.values()]
        if requires_grad != self._requires_grad:
            self._requires_grad, self._ddp = requires_grad, None
            trained = self._trained()
            if trained:
                group = self._world.group_for(trained[0].device)
                # the default group, which torch would take, may have no backend for host tensors
                of_group = {} if group is None else {"process_group": group}
                gate = LossGate(self._modules, named)
                self._ddp = DistributedDataParallel(gate, **gate.renamed(options), **of_group)
                self._ddp.broadcast_buffers = False  # they are copied before the step
                if self._world.size > 2 and not _keeps_buckets(options):
                    _arrange_buckets(self._ddp, trained)
        return self._ddp

    def copy_buffers(self) -> None:
        """Copy buffers from rank 0."""
        if self._copies_buffers:
            self._world.copy_from_main(self._modules.buffers())

    def begin_sum_counts(self, samples: float, weight: float) -> Callable[[], tuple[int, float]]:
        """See ``StepSync``; the next backward pass sums them together with the gradients."""
        ddp = self._update()
        counts: Counts | None = None if ddp is None else ddp.module.counts
        if counts is None:
            return super().begin_sum_counts(samples, weight)
        counts.set(samples, weight)
        return lambda: self._of_batches(*counts.sums(self._world.size))

    def backward(self, loss: Tensor | None, run: Callable[..., None], *, is_full: bool) -> None:
        """See ``StepSync``; only the last batch of a window communicates."""
        # torch counts the hooks of a static graph also in passes without communication
        ddp = self._update() if is_full or self._options.get("static_graph") else None
        if loss is None and ddp is not None:
            trained = self._trained()
            nothing = ddp.module.without_values(trained)
            loss = with_gradients(trained[0].new_zeros(()), nothing, trained)
        if loss is None:
            return
        with self._world.in_step():
            run(*([loss] if ddp is None else pass_gate(ddp, loss)))
        if ddp is not None:
            self._require_finished(ddp)

    def close(self) -> None:
        """Remove the hooks, also those of a backward pass that has raised."""
        super().close()
        if self._ddp is not None:  # the error's traceback may keep it alive
            self._ddp.reducer._remove_autograd_hooks()  # noqa: SLF001  no public form
            self._ddp = None

    def _require_finished(self, ddp: DistributedDataParallel) -> None:
        """Raise if gradients of this pass are missing; torch would notice in the next one."""
        try:
            ddp.reducer._rebuild_buckets()  # noqa: SLF001  the first thing of each forward pass
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            missing = self._missing(ddp, str(error))
            raise ConfigurationError(
                f"the training step gave no gradient to {missing} on rank {self._world.rank}, and "
                f"DDP averages those of all parameters at each step: use them in the loss, freeze "
                f"them with requires_grad_(False), or allow for it with "
                f"NNHandler(strategy=fitkit.DDP(find_unused_parameters=True))."
            ) from error

    def _missing(self, ddp: DistributedDataParallel, message: str) -> str:
        """The names of the parameters whose indices torch names."""
        found = re.search(r"rank \d+: ([\d ]+)", message)
        if found is None:  # with TORCH_DISTRIBUTED_DEBUG it names them itself
            return "some parameters"
        names = {id(p): name for name, p in self.named_parameters().items()}
        trained = [names.get(id(p), "") for p in ddp.module.parameters() if p.requires_grad]
        return names_of([trained[int(index)] for index in found[1].split()])


def pass_gate(ddp: DistributedDataParallel, loss: Tensor) -> list[Any]:
    """What ``run_backward`` takes: the loss behind DDP's ``LossGate``, then what goes with it."""
    passed, *views = ddp(loss)
    return [passed, *((view, ddp.module.counts.values) for view in views)]


def _keeps_buckets(options: Mapping[str, Any]) -> bool:
    """Whether DDP never arranges its buckets anew, or must see a whole step before."""
    return bool(options.get("find_unused_parameters") or options.get("static_graph"))


def _arrange_buckets(ddp: DistributedDataParallel, trained: Sequence[Tensor]) -> None:
    """Run a backward pass without gradients, after which DDP arranges its buckets for good.

    It would do that after the first step. The sum of three numbers depends on their order, which
    depends on the place in a bucket, so the first step of a resumed run would be another one.
    Gradients are expected in the order that DDP assumes: that of the last parameter comes first.
    """
    gradients = [parameter.grad for parameter in trained]
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    hooks = [of for p in trained for name in names if (of := getattr(p, name))]
    kept = [dict(of) for of in hooks]
    try:
        for of in hooks:  # they are for gradients of a step
            of.clear()
        for parameter in trained:
            parameter.grad = None
        loss = trained[0].new_zeros(())
        for parameter, nothing in zip(trained, ddp.module.without_values(trained), strict=True):
            loss = with_gradients(loss, [nothing], [parameter])
        passed, *others = pass_gate(ddp, loss)
        tensors, given = zip((passed, None), *others, strict=True)
        torch.autograd.backward(tensors, given)
        ddp.reducer._rebuild_buckets()  # noqa: SLF001  the first thing of each forward pass
    finally:
        for of, before in zip(hooks, kept, strict=True):
            of.update(before)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient


def _copies_buffers(options: Mapping[str, Any]) -> bool:
    """Whether DDP copies buffers in each forward pass; torch has two names for it."""
    given = (options.get("forward_sync_buffers"), options.get("broadcast_buffers"))
    return next((copies for copies in given if copies is not None), True)
