"""The outputs of a model: copied to the host batch by batch, and joined over a pass.

Tuples, named tuples, mappings and dataclasses are structures: their parts are joined one by one. A
list is either a structure or has one object per sample, which ``_are_samples`` decides.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fitkit.core.errors import DataError, listed
from fitkit.core.tree import rebuild_mapping

OUTPUTS = "the model's output"
_LEFT_OUT: Any = object()


class BatchOutputs(NamedTuple):
    """The outputs of one batch, and its number of samples if that matters."""

    outputs: Any
    num_samples: int | None


def parts_of(output: Any) -> dict[Any, Any] | None:
    """The parts of a structure or list by key, index or field name; ``None`` for other objects."""
    if isinstance(output, (Tensor, PackedSequence)):  # this tuple's parts are not outputs
        return None
    if isinstance(output, Mapping):
        return dict(output.items())
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return None


def needs_count(output: Any) -> bool:
    """Whether the number of samples says how to join: of lists, and of unequal first dimensions."""
    is_single = isinstance(output, Tensor)
    return not is_single and (_has_list(output) or len({t.shape[:1] for t in _tensors(output)}) > 1)


def _has_list(output: Any) -> bool:
    return isinstance(output, list) or any(map(_has_list, (parts_of(output) or {}).values()))


def rebuild(output: Any, parts: dict[Any, Any]) -> Any:
    """``output`` with other parts; only a mapping may have fewer."""
    if isinstance(output, Mapping):
        return parts if type(output) is dict else rebuild_mapping(output, parts)
    if isinstance(output, (tuple, list)):
        values = list(parts.values())
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    rebuilt = copy.copy(output)
    for name, part in parts.items():
        object.__setattr__(rebuilt, name, part)  # also of a frozen dataclass
    return rebuilt


def copy_to_host(output: Any) -> Any:
    """A copy of every tensor on the host; 16-bit and 8-bit floats become float32."""
    if isinstance(output, Tensor):
        return _host_copy(output)
    if isinstance(output, PackedSequence):
        packed: list[Any] = [None if part is None else _host_copy(part) for part in output]
        return PackedSequence(*packed)
    parts = parts_of(output)
    if parts is None:
        return output
    return rebuild(output, {key: copy_to_host(part) for key, part in parts.items()})


def _host_copy(tensor: Tensor) -> Tensor:
    dtype = tensor.dtype
    if dtype.is_floating_point and dtype.itemsize < 4:
        dtype = torch.float32
    elif dtype is torch.complex32:
        dtype = torch.complex64
    # a model may return its parameters, or memory that it fills again in the next batch
    own, is_as_wanted = tensor.detach(), tensor.is_cpu and dtype is tensor.dtype
    return own.clone() if is_as_wanted else own.to("cpu", dtype, copy=True)


def select_tensors(batch: BatchOutputs) -> BatchOutputs:
    """Leave out the parts in which there is no tensor, such as a cache, strings or ``None``.

    A mapping loses the key; in a tuple, list or dataclass ``None`` is in the place of the part.

    Raises:
        DataError: nothing is left.
    """
    selected = _select(batch.outputs, batch.num_samples)
    if selected is _LEFT_OUT:
        raise DataError(
            f"{OUTPUTS} has no tensor ({type(batch.outputs).__name__}), so tensors_only=True "
            f"leaves nothing: leave the argument out, or choose outputs with set_predict_step."
        )
    return BatchOutputs(selected, batch.num_samples)


def _select(output: Any, num_samples: int | None) -> Any:
    if isinstance(output, Tensor):
        return output
    parts = parts_of(output)
    has_tensors = any(True for _ in _tensors(output))
    if isinstance(output, list) and _may_be_samples(output, num_samples):
        # a batch in which nothing was detected has none
        return output if has_tensors or all(parts_of(one) == {} for one in output) else _LEFT_OUT
    if parts is None or not has_tensors:
        return _LEFT_OUT
    kept = {key: _select(part, num_samples) for key, part in parts.items()}
    if isinstance(output, Mapping):
        return rebuild(output, {key: part for key, part in kept.items() if part is not _LEFT_OUT})
    return rebuild(output, {k: None if part is _LEFT_OUT else part for k, part in kept.items()})


def require_joinable(batch: BatchOutputs, *, tensors_only: bool = False) -> None:
    """Raise ``DataError`` if the outputs of a batch could not be joined with those of others."""
    _require_joinable(batch.outputs, batch.num_samples, OUTPUTS, allow_none=tensors_only)


def _require_joinable(output: Any, num_samples: int | None, name: str, *, allow_none: bool) -> None:
    if isinstance(output, Tensor):
        if output.ndim == 0:
            raise DataError(
                f"{name} is a scalar for a batch, so it cannot be joined along the first "
                f"dimension: return one row per sample, or choose outputs with set_predict_step."
            )
        return
    parts = parts_of(output)
    if parts is None and not (output is None and allow_none):
        raise DataError(
            f"{name} must be a tensor to be joined, received {type(output).__name__}: pass "
            f"tensors_only=True to leave out what is no tensor, or choose outputs with "
            f"set_predict_step."
        )
    if isinstance(output, list):
        if _may_be_samples(output, num_samples):
            return
        if not _may_be_parts(output, num_samples):
            raise _neither(output, num_samples, name)
    for key, part in (parts or {}).items():
        _require_joinable(part, num_samples, f"{name}[{key!r}]", allow_none=allow_none)


def join(batches: list[BatchOutputs]) -> Any:
    """Concatenate the outputs of several batches: tensors along the first dimension, lists.

    Raises:
        DataError: they differ between batches, or it cannot be decided what a list is.
    """
    sizes = [batch.num_samples for batch in batches]
    return _join([batch.outputs for batch in batches], sizes, OUTPUTS)


def _join(outputs: list[Any], sizes: list[int | None], name: str) -> Any:
    if all(isinstance(output, list) for output in outputs) and _are_samples(outputs, sizes, name):
        return [sample for output in outputs for sample in output]
    _require_same_form(outputs, name)
    if isinstance(first := outputs[0], Tensor):
        _require_samples_first(outputs, sizes, name)
        return torch.cat(outputs)
    parts = [parts_of(output) or {} for output in outputs]
    if first is None:
        return None
    joined = {
        key: _join([part[key] for part in parts], sizes, f"{name}[{key!r}]") for key in parts[0]
    }
    return rebuild(first, joined)


def _require_samples_first(tensors: list[Tensor], sizes: list[int | None], name: str) -> None:
    """Refuse samples in the second dimension, as in the last state of an ``nn.LSTM``."""
    is_transposed = len(tensors) > 1 and len({len(tensor) for tensor in tensors}) == 1
    for tensor, size in zip(tensors, sizes, strict=True):
        is_transposed &= tensor.ndim > 1 and tensor.shape[1] == size != len(tensor)
    if is_transposed:
        raise DataError(
            f"{name} has the shape {tuple(tensors[0].shape)} in each batch, so its samples are not "
            f"in the first dimension, along which outputs are joined: transpose it, or choose "
            f"outputs with set_predict_step."
        )


def _are_samples(lists: list[list[Any]], sizes: list[int | None], name: str) -> bool:
    """Whether lists have one object per sample; otherwise they are structures.

    One object per sample: as many elements as the batch has samples. A structure: every tensor in
    it has one row per sample. All batches must agree on one of the two.
    """
    pairs = list(zip(lists, sizes, strict=True))
    samples = all(_may_be_samples(elements, size) for elements, size in pairs)
    parts = len({len(elements) for elements in lists}) == 1
    parts = parts and all(_may_be_parts(elements, size) for elements, size in pairs)
    if samples and parts and (len(lists), len(lists[0])) != (1, 1):  # then both are the same
        raise DataError(
            f"{name} is a list of {len(lists[0])} elements for each batch of {sizes[0]} samples, "
            f"and each element has {sizes[0]} rows: they may be objects per sample, or parts with "
            f"a row per sample. Return a tuple of parts, or predict with another batch_size."
        )
    if not samples and not parts:
        wrong = [p for p in pairs if not _may_be_samples(*p)] or pairs
        raise _neither(*wrong[0], name)
    return samples


def _may_be_samples(elements: list[Any], num_samples: int | None) -> bool:
    if num_samples is None:  # nothing was counted: only elements without rows are certain
        return not any(True for _ in _tensors(elements))
    return len(elements) == num_samples


def _may_be_parts(elements: list[Any], num_samples: int | None) -> bool:
    tensors = list(_tensors(elements))
    rows = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    return bool(tensors) and rows == {num_samples}


def _neither(elements: list[Any], num_samples: int | None, name: str) -> DataError:
    counted = "an unknown number of" if num_samples is None else num_samples
    return DataError(
        f"{name} is a list of {len(elements)} elements for a batch of {counted} samples: return "
        f"one object per sample, or a tuple if its parts are to be joined."
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for part in (parts_of(output) or {}).values():
        yield from _tensors(part)


def _require_same_form(outputs: list[Any], name: str) -> None:
    forms = list(dict.fromkeys(map(_form, outputs)))
    if len(forms) > 1:
        raise DataError(
            f"{name} differs between batches, so it cannot be joined: {forms[0]}, then "
            f"{forms[1]}. Return the same form for each batch, for instance by padding, or use "
            f"predict_batches."
        )


def _form(output: Any) -> str:
    """What has to be the same in every batch for outputs to be joined."""
    if isinstance(output, Tensor):
        return f"tensors of shape ({', '.join(['batch', *map(str, output.shape[1:])])})"
    if isinstance(output, Mapping):
        return f"{type(output).__name__}s of {listed(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__}s of {len(output)}"
    return type(output).__name__
