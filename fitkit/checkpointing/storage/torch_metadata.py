"""torch's ``.metadata`` of a shard folder, with which torch.distributed.checkpoint reads it.

The import takes a second, so it happens only where the file is written.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from fitkit.checkpointing.format import tensor_stubs
from fitkit.checkpointing.storage.shard_index import Chunk, ShardedTensor, ShardIndex

METADATA_NAME = ".metadata"


def write_metadata(folder: Path, index: ShardIndex) -> None:
    """Write what torch calls the metadata of the tensors in ``index``."""
    tensors: dict[str, dcp.STORAGE_TYPES] = {
        key: _description(tensor) for key, tensor in index.tensors.items()
    }
    results = [
        _result(key, chunk) for key, tensor in index.tensors.items() for chunk in tensor.chunks
    ]
    FileSystemWriter(folder).finish(dcp.Metadata(tensors), [results])


def _description(tensor: ShardedTensor) -> dcp.TensorStorageMetadata:
    dtype = tensor_stubs.dtype_from_name(tensor.dtype)
    chunks = [
        dcp.ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        for chunk in tensor.chunks
    ]
    properties = dcp.TensorProperties() if dtype is None else dcp.TensorProperties(dtype)
    return dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)


def _result(key: str, chunk: Chunk) -> WriteResult:
    place = _StorageInfo(chunk.file, chunk.at, chunk.bytes)
    return WriteResult(dcp.MetadataIndex(key, chunk.offsets), chunk.bytes, place)
