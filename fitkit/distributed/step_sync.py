"""StepSync: what a training step does together with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share
from fitkit.distributed.average_gradients import average_gradients
from fitkit.distributed.compare_gradients import require_equal_gradients, require_equal_weights
from fitkit.distributed.own_backward import OwnBackward
from fitkit.distributed.world import World

Count = Callable[[], Share]


class StepSync:
    """The part of a training step that all ranks take together; DDP and FSDP add theirs.

    A step runs on the modules themselves, so it may use any part of them. All that ranks do
    together happens before and after it, and at the end of a backward pass.

    Args:
        modules: the model without wrappers, and the loss.
        optimizer: may have parameters of neither; ``None``: a custom step brings its own.
        world: the ranks.
        is_custom: the step is the user's, and may run backward passes itself.
        num_batches: how many of the ranks have batches of their own, whose gradients are averaged;
            with tensor parallelism several compute one together. ``None``: all.
    """

    def __init__(
        self,
        modules: TrainedModules,
        optimizer: Optimizer | None,
        world: World,
        *,
        is_custom: bool = False,
        num_batches: int | None = None,
    ) -> None:
        self.size = num_batches or world.size
        self._modules, self._optimizer, self._world = modules, optimizer, world
        self._num_optimized = -1
        self._compared: set[str] = set()
        self._num_steps = 0
        self._named: dict[str, Tensor] = {}
        self.named_parameters()
        self._own = OwnBackward(world, self.named_parameters) if is_custom else None

    @property
    def is_custom(self) -> bool:
        """Whether the step is the user's."""
        return self._own is not None

    def named_parameters(self) -> dict[str, Tensor]:
        """The parameters of model, loss and optimizer, each once."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        num_optimized = sum(len(group["params"]) for group in groups)
        if num_optimized != self._num_optimized:  # a callback may have added some
            self._num_optimized = num_optimized
            named: dict[str, Tensor] = dict(self._modules.named_parameters())
            known = set(map(id, named.values()))
            others = [p for group in groups for p in group["params"] if id(p) not in known]
            named |= {f"parameter {i} of the optimizer alone": p for i, p in enumerate(others)}
            self._named = named
        return self._named

    @contextmanager
    def step(self, count: Count) -> Iterator[None]:
        """The context in which the step of a batch runs; ``count``: counts its samples."""
        self._num_steps += 1
        if self._num_steps == 2:
            self.compare_weights()
        before = self._named
        if self.named_parameters() is not before:
            known = set(map(id, before.values()))
            added = [p for p in self._named.values() if id(p) not in known]
            self._world.copy_from_main([p.detach() for p in added])
        self.copy_buffers()
        own = nullcontext() if self._own is None else self._own.during_step(count)
        with own, self._world.in_step():
            yield

    def end_step(self) -> None:
        """Called after each step, whether it had a backward pass, none or an error."""

    def copy_buffers(self) -> None:
        """Copy buffers from rank 0, which are also those that are saved."""
        raise NotImplementedError

    def begin_sum_counts(self, samples: float, weight: float) -> Callable[[], tuple[int, float]]:
        """Begin to sum samples and weight of the batches of all ranks.

        A backward pass of a full window has to follow before the result is called.
        """
        end = self._world.begin_sum(torch.tensor([samples, weight], dtype=torch.float64))
        return lambda: self._of_batches(*end().tolist())

    def sum_counts(
        self, samples: float, weight: float, *, is_own: bool = False
    ) -> tuple[int, float]:
        """Samples and weight of the batches of all ranks.

        ``is_own``: the step returned ``backward=False``.

        Raises:
            ConfigurationError: ranks have run other backward passes in this step.
        """
        if self._own is None:
            counts = torch.tensor([samples, weight], dtype=torch.float64)
            return self._of_batches(*self._world.sum(counts).tolist())
        return self._of_batches(*self._own.end(samples, weight, is_own=is_own))

    def _of_batches(self, samples: float, weight: float) -> tuple[int, float]:
        """The sums over batches, from those over ranks."""
        copies = self._world.size // self.size
        return round(samples / copies), weight / copies

    def backward(self, loss: Tensor | None, run: Callable[..., None], *, is_full: bool) -> None:
        """A backward pass, at the end of which a full window has the mean gradients of all ranks.

        Args:
            loss: of this rank; ``None``: its batch has no weight.
            run: the backward pass of one rank, ``(loss, *others)`` as ``run_backward``.
            is_full: whether the batch is the last of its accumulation window.

        Raises:
            ConfigurationError: ranks cannot average the gradient of some parameter.
        """
        raise NotImplementedError

    def without_weight(self, loss: Tensor | None) -> Tensor | None:
        """What ``backward`` gets for a batch that has no weight on this rank.

        ``loss``: what the step returned, if it did not skip the batch; it may be NaN.
        """
        # layers that communicate, such as SyncBatchNorm, have to be gone back through
        return None if loss is None or not loss.isfinite() else loss * 0.0

    def average_gradients(self) -> None:
        """Average the gradients of a window that ended early."""
        average_gradients(self._world, self._trained())

    def compare_gradients(self, moment: str) -> None:
        """The first time at each moment: raise if gradients differ between ranks.

        Those from before the backward pass are compared too, which averages what it adds to.
        """
        if moment not in self._compared:
            self._compared.add(moment)
            named = self.named_parameters()
            optimized = {id(p) for g in self._optimizer.param_groups for p in g["params"]}  # type: ignore[union-attr]
            require_equal_gradients(
                self._world, {name: p for name, p in named.items() if id(p) in optimized}
            )

    def compare_weights(self) -> None:
        """After the first step and each pass over the data: raise if ranks have other weights."""
        require_equal_weights(self._world, self.named_parameters())

    def _trained(self) -> Sequence[Tensor]:
        return [p for p in self.named_parameters().values() if p.requires_grad]

    def close(self) -> None:
        """Called at the end of a run."""
        if self._own is not None:
            self._own.close()
