"""AccumulationWindow: the batches whose gradients make one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.errors import CheckpointError
from fitkit.distributed.dtensor import distribute_all_like


class AccumulationWindow:
    """The batches whose gradients are added, each weighted by the weight of its loss.

    Only the end of a window tells its whole weight. Until then losses are divided by the weight
    that it will have if all its batches are like the first, and gradients are scaled at the end.
    So it is with a window of one batch whose weight on all ranks is only known after its backward
    pass: it is expected to be that of the batch before.

    Attributes:
        batches: batches in the window; 0: no window is open.
        last_weight: of the last batch that was weighed on all ranks; 0: there was none.
    """

    def __init__(self) -> None:
        self._weight: Any = 0
        self.last_weight: float = 0
        self.close()

    def close(self) -> None:
        """Begin anew."""
        self.batches = 0
        self._weight = 0
        self._expected: float = 0

    def join(
        self, weight: Any, total: Any, *, samples: int, size: int, num_ranks: int, is_last: bool
    ) -> tuple[Any, bool]:
        """Add a batch.

        Args:
            weight: of this rank's loss, a number or a tensor on the device, which is not read.
            total: of the losses of all ranks; ``None``: ``weigh`` will tell it.
            samples: of all ranks.
            size: batches in a full window.
            num_ranks: a backward pass takes the mean over so many ranks, not the sum.
            is_last: whether no further batch follows.

        Returns:
            the factor of the loss, and whether the window is now full.
        """
        if total is None:
            self._expected = self.last_weight
            return num_ranks * weight / self._expected, True
        if size == 1:
            return (1.0 if num_ranks == 1 else num_ranks * weight / total), True
        self.last_weight = 0
        if not self.batches:
            self._expected = size * (samples if isinstance(total, Tensor) else total)
        self.batches += 1
        self._weight = self._weight + total
        return num_ranks * weight / self._expected, self.batches >= size or is_last

    def weigh(self, total: float) -> None:
        """Tell the weight of a window of one batch on all ranks."""
        self._weight = total
        self.last_weight = total or self.last_weight

    def correction(self) -> Any:
        """The factor by which the gradients have to be multiplied at the end; ``None``: 1."""
        if isinstance(self._weight, Tensor):
            return torch.where(self._weight > 0, self._expected / self._weight, 0.0)
        return None if self._weight == self._expected else self._expected / self._weight

    def state_dict(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """Counts and these gradients; empty without both."""
        found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if not self.batches and not found and not self.last_weight:
            return {}
        is_on_device = isinstance(self._weight, Tensor)
        return {
            "batches": self.batches,
            "samples": float(self._weight) if is_on_device else self._weight,
            "expected": self._expected if self.batches else self.last_weight,
            "gradients": found,
        }

    def load_state_dict(
        self, state_dict: dict[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Load a window that is not full; no other parameter has a gradient afterwards.

        Raises:
            CheckpointError: its gradients do not fit the model.
        """
        self.close()
        self.last_weight = 0
        for parameter in parameters.values():
            parameter.grad = None
        if not state_dict:
            return
        counts = [state_dict[name] for name in ("batches", "samples", "expected")]
        fits = all(type(count) in (int, float) and 0 <= count < math.inf for count in counts)
        if not fits or (counts[0] and not counts[2]):  # what an open window expects is a divisor
            raise CheckpointError(
                f"the checkpoint's accumulation window must have counts of at least 0, and expect "
                f"some weight if it is open, received {counts!r}: use another checkpoint."
            )
        gradients = distribute_all_like(state_dict["gradients"], dict(parameters))
        for name, gradient in gradients.items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise CheckpointError(
                    f"the checkpoint's gradient of {name!r} does not fit this model: resume with "
                    f"the model that was saved, or from a checkpoint at the end of an epoch."
                )
        for name, gradient in gradients.items():
            parameters[name].grad = _gradient_like(gradient, parameters[name])
        if counts[0]:
            self.batches, self._weight, self._expected = counts
        else:
            self.last_weight = counts[2]


def _gradient_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A copy of ``gradient`` on the parameter's device, in the layout and dtype it was saved in."""
    if gradient.layout is torch.strided and gradient.dtype == parameter.dtype:
        return torch.empty_like(parameter).copy_(gradient)  # with the strides that backward gives
    return gradient.detach().to(parameter.device, copy=True)
