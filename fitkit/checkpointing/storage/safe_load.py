"""Load one file safely: every checksum is checked, and nothing in the file is executed.

``torch.load(weights_only=True)`` decides what a pickle may do. It checks no checksum, so a flipped
bit in a tensor would load silently: they are checked here. What would exhaust memory, time or the
stack when it is read or used is refused first (``pickle_scan``).
"""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.storage import archive
from fitkit.checkpointing.storage.archive import Source
from fitkit.checkpointing.storage.pickle_scan import check_pickle
from fitkit.checkpointing.storage.zip_records import Record
from fitkit.core.tree import map_tensors, rebuild_mapping


def verify(path: Path) -> None:
    """Check every checksum in the file; raises as ``read``."""
    archive.require_file(path)
    archive.check_records(path, path)


def read(path: Path, *, mmap: bool = False) -> Any:
    """The verified content of a file; nothing in it is executed.

    Args:
        path: the file.
        mmap: map tensors from the file instead of copying them to memory; the file must not be
            changed in place while they are used.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, altered, or not a checkpoint.
        UnsafeCheckpointError: it holds something other than tensors and plain types.
    """
    archive.require_file(path)
    return _load(path, path, *archive.check_records(path, path), mmap=mmap)


def read_bytes(data: bytes, path: Path) -> Any:
    """The content of ``data``, a part of the file ``path`` whose checksum matches; as ``read``."""
    checked = archive.check_records(io.BytesIO(data), path, tensors_too=False)
    return _load(io.BytesIO(data), path, *checked, mmap=False)


def read_without_tensors(path: Path) -> Any:
    """The content of a file with tensors on the device ``"meta"``: shapes and types, no values.

    Only what is read is verified, so this takes milliseconds whatever the file's size.
    """
    archive.require_file(path)
    content = _load(path, path, *archive.check_records(path, path, tensors_too=False), mmap=True)
    return _without_values(content, {})


# ---- content ------------------------------------------------------------------------------------


def _load(
    source: Source, path: Path, records: list[Record], pickles: list[bytes], *, mmap: bool
) -> Any:
    with archive.as_read_error(path):
        for pickled in pickles:  # one, in a file of torch
            check_pickle(pickled, archive.tensor_bytes(records), archive.num_bytes(records))
        with warnings.catch_warnings():  # about how a file was written; they may be errors
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _without_values(value: Any, known: dict[int, Any]) -> Any:
    """``value`` with tensors on the device ``"meta"``; what is used many times stays one object."""
    if id(value) in known:
        return known[id(value)]
    if type(value) in (list, tuple):
        made = type(value)([_without_values(item, known) for item in value])
    elif type(value) in (dict, OrderedDict):
        mapped = {key: _without_values(item, known) for key, item in value.items()}
        made = mapped if type(value) is dict else rebuild_mapping(value, mapped)
    else:
        made = map_tensors(_on_meta, value)
        if made is value:
            return value
    known[id(value)] = made
    return made


def _on_meta(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:  # torch has no empty_like for all of them
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")
