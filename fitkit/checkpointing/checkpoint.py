"""Checkpoints as files: verify, read, convert between one file and shards, duplicate, remove."""

from fitkit.checkpointing.storage.single_or_sharded import (
    convert,
    duplicate,
    read,
    read_without_tensors,
    remove,
    size_bytes,
    verify,
)

__all__ = ["convert", "duplicate", "read", "read_without_tensors", "remove", "size_bytes", "verify"]
