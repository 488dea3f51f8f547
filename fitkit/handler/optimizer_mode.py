"""OptimizerMode: optimizers that evaluate other weights than those that they train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.core.state_placement import detached_copy
from fitkit.handler.group_options import Options, differs, options_of
from fitkit.handler.optimizer_state import has_modes, state_of
from fitkit.handler.parts import Parts
from fitkit.runtime.lazy_modules import has_values

Values = list[tuple[Tensor, Tensor]]  # parameters, and copies of their values


class OptimizerMode:
    """Switches an optimizer that has ``train()`` and ``eval()``, such as a schedule-free one.

    Such an optimizer (Defazio et al. 2024, arXiv:2405.15682) takes gradients at one point and
    averages at another; ``eval()`` moves the parameters to the average, and ``train()`` back up to
    rounding. Both may change parameters and options of groups only.

    The optimizer is in training mode, also between two calls of ``fit``, except inside
    ``evaluating`` and after ``stay_evaluating``.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._trained: Values = []  # inside ``evaluating``
        self._options: list[Options] = []  # those in training mode, while it is in the other
        self._evaluating: Optimizer | None = None  # the optimizer that is in the other mode

    @property
    def _is_evaluating(self) -> bool:
        return self._evaluating is not None and self._evaluating is self._parts.optimizer

    @property
    def switches(self) -> bool:
        """Whether the optimizer has the two modes."""
        return has_modes(self._parts.optimizer)

    def train(self) -> None:
        """Go on with training from here."""
        if self.switches:
            optimizer: Any = self._parts.optimizer
            optimizer.train()
        self._evaluating, self._options = None, []

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside ``with`` parameters have the values to evaluate; then the same bits again."""
        return self._switched() if self.switches and not self._is_evaluating else nullcontext()

    @contextmanager
    def _switched(self) -> Iterator[None]:
        optimizer: Any = self._parts.optimizer
        self._trained = self._values()
        try:
            self._enter_evaluation()
            yield
        finally:
            optimizer.train()
            _put(self._trained)  # train() itself rounds
            self._trained, self._options, self._evaluating = [], [], None

    def stay_evaluating(self, *, weights_are_trained: bool) -> None:
        """Evaluate from now on what is loaded into the model, until training goes on.

        ``weights_are_trained``: checkpoints hold these weights too.
        """
        if self.switches and not self._is_evaluating:
            self._enter_evaluation()
        if weights_are_trained:
            self._options = []

    def _enter_evaluation(self) -> None:
        optimizer: Any = self._parts.optimizer
        self._options = options_of(optimizer)
        optimizer.eval()
        self._evaluating = optimizer
        changed = zip(self._options, options_of(optimizer), strict=True)
        # other options may be changed by a callback in the meantime
        self._options = [
            {key: value for key, value in before.items() if differs(value, after.get(key))}
            for before, after in changed
        ]

    def _values(self) -> Values:
        optimizer: Any = self._parts.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # a lazy parameter has none before the first batch
        return [(p, detached_copy(p)) for p in parameters if has_values(p)]

    # ---- values of a checkpoint -----------------------------------------------------------------

    def trained_weights(self, module: nn.Module) -> dict[str, Any]:
        """The module's state dict with its trained weights, also inside ``evaluating``."""
        weights: dict[str, Any] = module.state_dict()
        trained = {id(parameter): value for parameter, value in self._trained}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in trained and name in weights:
                weights[name] = trained[id(parameter)]
        return weights

    def averaged_weights(self, module: nn.Module) -> dict[str, Any] | None:
        """Copies of the module's parameters with the values to evaluate; ``None``: as saved."""
        if not self.switches or self.is_saved_evaluating():
            return None
        with self.evaluating():
            return {
                name: detached_copy(parameter)
                for name, parameter in module.named_parameters(remove_duplicate=False)
            }

    def optimizer_state(self) -> dict[str, Any] | None:
        """The state of the optimizer, as it is in training mode with the weights that are saved."""
        state = state_of(self._parts.optimizer)
        if state is None or not self._options:
            return state
        groups = zip(state["param_groups"], self._options, strict=False)
        return {**state, "param_groups": [{**group, **options} for group, options in groups]}

    def is_saved_evaluating(self) -> bool:
        """Whether the weights that are saved are those to evaluate, not those to train."""
        return self._is_evaluating and not self._options

    def load(self, is_evaluating: bool | None) -> None:
        """Bring the optimizer into the mode in a checkpoint, without moving the weights."""
        if not self.switches or is_evaluating is None:
            return
        optimizer: Any = self._parts.optimizer
        values = self._values()
        optimizer.eval() if is_evaluating else optimizer.train()
        _put(values)
        self._evaluating, self._options = optimizer if is_evaluating else None, []


@torch.no_grad()
def _put(values: Values) -> None:
    for parameter, value in values:
        parameter.copy_(value)
