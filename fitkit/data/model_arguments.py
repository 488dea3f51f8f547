"""The arguments with which a model is called, from the inputs of a batch and its ``forward``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_origin
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fitkit.core.errors import DataError, add_note, describe
from fitkit.core.tree import is_sequence

_SEQUENCE = re.compile(r"(typing\.|collections\.abc\.)?([Ll]ist|[Tt]uple|Sequence|Iterable)\b")
_MAPPING = re.compile(r"(typing\.|collections\.abc\.)?([Dd]ict|(Mutable)?Mapping)\b")

ANY_NUMBER = 1 << 30


class Signature(NamedTuple):
    """What ``forward`` takes.

    Attributes:
        required: positional parameters without a default.
        largest: positional parameters; ``ANY_NUMBER`` with ``*args``.
        names: parameters that can be passed by name.
        any_name: whether it has ``**kwargs``.
        first: the annotation of the first parameter, as text; "" without one.
        first_type: the same if it is a class, else ``None``.
    """

    required: int = 0
    largest: int = ANY_NUMBER
    names: frozenset[str] = frozenset()
    any_name: bool = True
    first: str = ""
    first_type: type | None = None

    @property
    def may_take_one(self) -> bool:
        """Whether a call with one positional argument is possible."""
        return self.required <= 1 <= self.largest


_SIGNATURES: WeakKeyDictionary[Any, Signature] = WeakKeyDictionary()


def call_model(model: Any, inputs: Any, described_by: nn.Module | None = None) -> Any:
    """Call the model with the inputs of a batch; see ``model_arguments``.

    ``described_by`` is the model whose ``forward`` decides, if ``model`` is a wrapper of it.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = model_arguments(model if described_by is None else described_by, inputs)
    try:
        return model(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        if args and args[0] is inputs:
            add_note(error, _note(inputs))
        raise


def model_arguments(model: Any, inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Positional and keyword arguments of the model for the inputs of a batch.

    A tuple or list is passed as several arguments and a mapping by name, unless ``forward`` takes
    one argument: if it has one positional parameter that is not annotated as a ``Tensor``; if its
    first parameter is annotated as such a container and no other is required; or if it has no
    parameter with a name of the mapping. All other inputs are one argument, also a
    ``PackedSequence``, a graph or a dataclass.

    Raises:
        DataError: the inputs are a list of tensors with different numbers of rows, and ``forward``
            says neither that it takes one list nor that it takes several arguments.
    """
    if is_sequence(inputs):
        return ((inputs,) if _is_one(signature_of(model), inputs) else tuple(inputs)), {}
    if isinstance(inputs, Mapping):
        signature = signature_of(model)
        is_declared = signature.may_take_one and _is_declared(signature, inputs, _MAPPING)
        if is_declared or _has_none_of(signature, inputs):
            return (inputs,), {}
        return (), inputs
    return (inputs,), {}


def declares_one_list(model: Any) -> bool:
    """Whether the first parameter of the model's ``forward`` is annotated as a list."""
    signature = signature_of(model)
    return signature.may_take_one and _SEQUENCE.match(signature.first) is not None


def _is_one(signature: Signature, inputs: Any) -> bool:
    if signature.may_take_one and _is_declared(signature, inputs, _SEQUENCE):
        return True
    if not signature.may_take_one or "Tensor" in signature.first:
        return False
    if signature.largest == 1 or isinstance(inputs, tuple):
        return signature.largest == 1
    if signature.largest == ANY_NUMBER or _is_collated(inputs):
        return False
    raise DataError(
        f"the inputs are {describe(inputs)}, which may be one argument or several, because forward "
        f"takes one positional argument or more: for several make the inputs a tuple; for one "
        f"annotate the first parameter of forward as a list, or pass a tuple that holds the list."
    )


def _is_collated(inputs: list[Any]) -> bool:
    """Whether a list has a tensor for each argument, with the same samples in all of them."""
    rows = {part.shape[:1] if isinstance(part, Tensor) else None for part in inputs}
    return len(rows) == 1 and rows.isdisjoint({None, torch.Size([])})


def _is_declared(signature: Signature, inputs: Any, kind: re.Pattern[str]) -> bool:
    """Whether the first parameter is annotated as a container like the inputs."""
    is_of_type = signature.first_type is not None and isinstance(inputs, signature.first_type)
    return is_of_type or kind.match(signature.first) is not None


def _has_none_of(signature: Signature, inputs: Mapping[str, Any]) -> bool:
    """Whether no entry can be passed by name, but all as one argument."""
    if not signature.may_take_one or signature.any_name or not inputs:
        return False
    return signature.names.isdisjoint(inputs)


def signature_of(model: Any) -> Signature:
    """What the model's ``forward`` takes; that of the inner model for a wrapper of torch."""
    signature = _read(getattr(model, "forward", model))
    if type(model) is nn.Sequential and len(model):
        return signature._replace(first=signature_of(model[0]).first)
    inner = getattr(model, "_orig_mod", None)  # of torch.compile
    if inner is None and signature.largest == ANY_NUMBER:
        inner = getattr(model, "module", None)  # of DDP, DataParallel and AveragedModel
    return signature_of(inner) if isinstance(inner, nn.Module) else signature


def _read(function: Callable[..., Any]) -> Signature:
    key = getattr(function, "__func__", function)
    try:
        if key not in _SIGNATURES:
            _SIGNATURES[key] = _inspect(function)
        return _SIGNATURES[key]
    except TypeError:  # of an object without weak references
        return _inspect(function)


def _inspect(function: Callable[..., Any]) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # compiled code
        return Signature()
    kinds = {parameter.kind for parameter in parameters}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    annotation = positional[0].annotation if positional else inspect.Parameter.empty
    is_annotated = annotation not in (inspect.Parameter.empty, Any)
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    is_class = is_annotated and inspect.isclass(annotation) and get_origin(annotation) is None
    return Signature(
        required=sum(parameter.default is parameter.empty for parameter in positional),
        largest=ANY_NUMBER if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional),
        names=frozenset(parameter.name for parameter in named),
        any_name=inspect.Parameter.VAR_KEYWORD in kinds,
        first=text if is_annotated else "",
        first_type=annotation if is_class and annotation is not object else None,
    )


def _note(inputs: Any) -> str:
    if isinstance(inputs, np.ndarray):
        return "the inputs are a NumPy array: make them a tensor, for instance in collate_fn"
    return (
        f"the model was called with one argument, {describe(inputs)}: a batch of inputs and "
        f"targets is a pair (inputs, targets), and several inputs are a tuple"
    )
