"""run_backward: ``loss.backward()`` without the checks that a scalar loss does not need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.overrides import has_torch_function

# what ``torch.autograd.backward`` calls in the end; private, so that a release may lack it
_ENGINE: Any = getattr(graph, "_engine_run_backward", None)
_OF_TENSOR, _OF_AUTOGRAD = Tensor.backward, torch.autograd.backward


def run_backward(loss: Tensor, *others: tuple[Tensor, Tensor]) -> None:
    """Accumulate the gradients of ``loss``, the same bits as ``loss.backward()``.

    ``others`` are further tensors, each with its gradient, that the same pass starts from.

    torch looks for overrides twice, and makes and checks the gradient of the loss in Python, which
    takes as long as the backward pass of two layers of a small model. All other losses than a plain
    scalar go that way, as does every loss where ``backward`` is replaced.
    """
    if _ENGINE is None or not _is_plain(loss):
        for tensor, gradient in others:
            torch.autograd.backward(tensor, gradient)
        loss.backward()  # type: ignore[no-untyped-call]
        return
    _ENGINE(
        (loss, *[tensor for tensor, _ in others]),
        (torch.ones_like(loss), *[gradient for _, gradient in others]),
        False,  # keep the graph
        False,  # create a graph of the gradients
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def _is_plain(loss: Tensor) -> bool:
    return (
        type(loss) is Tensor
        and loss.ndim == 0
        and loss.requires_grad
        and loss.is_floating_point()
        and loss.layout is torch.strided
        and not has_torch_function((loss,))
        and Tensor.backward is _OF_TENSOR
        and torch.autograd.backward is _OF_AUTOGRAD
    )
