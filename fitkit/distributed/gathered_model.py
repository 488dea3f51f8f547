"""GatheredModel: a sharded model, any part of which may be called while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.distributed.fsdp import FSDPModule

from fitkit.core.errors import ConfigurationError, add_note
from fitkit.distributed.gathered_parameter import GatheredParameter


class GatheredModel:
    """Gathers the parameters of a sharded model where a step needs them.

    FSDP gathers a unit, such as a block, when it is called, and the root only within its forward
    pass. While a step runs, the root is gathered, and any other unit as soon as a module inside it
    is called without it. Afterwards all parameters are sharded again.

    Attributes:
        keeps_changes: whether the step may clear gradients and change values, as in training.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root: Any = root
        _state_of(root)._lazy_init()  # noqa: SLF001  else a unit could become the root
        self._units: dict[Any, list[nn.Module]] = {}
        self._gathered: list[Any] = []
        self._nodes: list[Node] = []  # which torch forgets, with their hooks, if nobody has them
        self._changing: dict[Any, list[GatheredParameter]] = {}
        self._is_running = self.keeps_changes = False
        self._collect(root, [])
        for group in _groups_of(root):
            group.post_backward = partial(self._after_pass, group.post_backward)
        for unit, modules in self._units.items():
            for module in modules:
                if (module is not unit or unit is root) and module._parameters:  # noqa: SLF001
                    module.register_forward_pre_hook(partial(self._before_forward, unit))

    def _collect(self, module: nn.Module, modules: list[nn.Module]) -> None:
        """Find the modules whose own parameters are gathered together with a unit."""
        if isinstance(module, FSDPModule):
            if module in self._units:
                return
            modules = self._units[module] = []
        modules.append(module)
        for child in module.children():
            self._collect(child, modules)

    @contextmanager
    def running(self, *, keeps_root: bool = False) -> Iterator[None]:
        """Inside ``with`` a step runs; afterwards gradients may still be computed.

        ``keeps_root``: the root stays gathered for them, until ``release`` is called.
        """
        if self._is_running:
            yield
            return
        self._is_running = True
        self._gathered = []
        self._gather(self._root)
        # a step may use parameters after it has called the model
        self._root.set_reshard_after_forward(False, recurse=False)
        try:
            with explained():
                yield
            self.keep_changes()
        except BaseException:
            keeps_root = False
            raise
        finally:
            self._changing.clear()
            self._root.set_reshard_after_forward(True, recurse=False)
            for unit in self._gathered:
                if unit is not self._root or not keeps_root:
                    unit.reshard()
            self._is_running = False

    def release(self) -> None:
        """Shard the root again, if the backward pass has not."""
        self._root.reshard()

    def _before_forward(self, unit: Any, module: nn.Module, args: Any) -> None:
        if not self._is_running:
            return
        is_sharded = any(it.sharded_state.name != "UNSHARDED" for it in _parameters_of(unit))
        is_new = unit is self._root and unit not in self._changing  # a pass has ended before
        if is_sharded or (is_new and self.keeps_changes):
            self._gather(unit)

    def _gather(self, unit: Any) -> None:
        self._gathered.append(unit)
        unit.unshard()
        # not in a backward pass, which calls checkpointed modules again
        if self.keeps_changes and torch._C._current_graph_task_id() == -1:  # noqa: SLF001
            self._changing[unit] = list(map(GatheredParameter, _parameters_of(unit)))

    def keep_changes(self) -> None:
        """Pass on what the step has done to gathered parameters, see ``GatheredParameter``."""
        while self._changing:
            for parameter in self._changing.popitem()[1]:
                parameter.keep_changes()

    def _after_pass(self, of_torch: Callable[..., None], *inputs: Any) -> None:
        # torch.autograd.grad adds no gradients, and the step goes on with what it has gathered
        if not self._changing:
            of_torch(*inputs)

    def gather_root(self) -> None:
        """Gather the root again, as a backward pass or an optimizer has sharded it."""
        self.keep_changes()
        self._root.reshard()
        self._gather(self._root)

    def prepare_backward(self, loss: Tensor) -> None:
        """Let the backward pass of ``loss`` gather what the step had, and reduce all gradients."""
        for unit in dict.fromkeys(self._gathered):
            loss.register_hook(_state_of(unit)._pre_backward)  # type: ignore[no-untyped-call]  # noqa: SLF001

    def register_hooks(self, hook: Callable[[Tensor], Tensor | None]) -> list[Any]:
        """Register ``hook`` on every gathered parameter; gathers one unit after the other."""
        handles = []
        self._nodes.clear()
        for unit in self._units:
            unit.unshard()
            for of_torch in _parameters_of(unit):
                parameter, is_trained = (
                    of_torch.unsharded_param,
                    of_torch.sharded_param.requires_grad,
                )
                name = of_torch._module_info.param_name  # noqa: SLF001
                before = partial(_before_accumulation, unit, name, hook)
                # not a hook of the tensor: torch.autograd.grad would call it, too
                node = get_gradient_edge(parameter.requires_grad_()).node
                handles.append(node.register_prehook(before))
                self._nodes.append(node)
                parameter.requires_grad_(is_trained)
            unit.reshard()
        return handles

    def finish_pass(self) -> None:
        """Called in a backward pass: reduce gradients at its end, whatever it has gone through."""
        _state_of(self._root)._register_root_post_backward_final_callback()  # noqa: SLF001


def _state_of(unit: Any) -> Any:
    return unit._get_fsdp_state()  # noqa: SLF001


def _groups_of(unit: Any) -> list[Any]:
    state = _state_of(unit)
    if hasattr(state, "_fsdp_param_groups"):
        groups: list[Any] = state._fsdp_param_groups  # noqa: SLF001
        return groups
    return [state._fsdp_param_group]  # noqa: SLF001  earlier releases have one for each unit


def _parameters_of(unit: Any) -> list[Any]:
    """What torch keeps of each parameter that is gathered with a unit."""
    return [parameter for group in _groups_of(unit) for parameter in group.fsdp_params]


def _before_accumulation(
    unit: Any, name: str, hook: Callable[[Tensor], Tensor | None], gradients: tuple[Tensor]
) -> tuple[Tensor] | None:
    for group in _groups_of(unit):
        if group._training_state.name == "POST_BACKWARD":  # noqa: SLF001
            raise ConfigurationError(
                f"the backward pass reaches {name!r} of {type(unit).__name__} after FSDP has "
                f"reduced its gradients. {_REMEDY}"
            )
    changed = hook(gradients[0])
    return None if changed is None else (changed,)


_REMEDY = (
    "With FSDP a step may call a block or the modules inside it, but not both, and cannot use "
    "weights of a block outside of a module's call, or for second derivatives: call the block "
    "itself, or leave it out of fitkit.FSDP(blocks=...)."
)


@contextmanager
def explained() -> Iterator[None]:
    """Add what to do to torch's errors for parameters that are not gathered."""
    try:
        yield
    except RuntimeError as error:
        if any(text in str(error) for text in ("storage of size 0", "torch.Tensor and DTensor")):
            add_note(error, _REMEDY)
        raise
