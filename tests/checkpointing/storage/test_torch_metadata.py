"""torch's own reader finds the tensors, whoever wrote them."""

from __future__ import annotations

import pytest
import torch

from fitkit.checkpointing.storage import shard_chunks, shard_index, sharded_checkpoint
from fitkit.checkpointing.storage.torch_metadata import METADATA_NAME, write_metadata
from fitkit.distributed.world import World


def test_torch_reads_what_two_ranks_wrote(tmp_path):
    whole, merged = torch.arange(12.0).reshape(4, 3), None
    for rank in range(2):
        index = shard_chunks.write_chunks({"a": whole[2 * rank : 2 * rank + 2]}, tmp_path, rank)
        chunk = index.tensors["a"].chunks[0]._replace(offsets=[2 * rank, 0])
        chunks = [*(merged.tensors["a"].chunks if merged else ()), chunk]
        stored = shard_index.ShardedTensor([4, 3], "float32", chunks)
        merged = shard_index.ShardIndex({"a": stored}, index.files)
    write_metadata(tmp_path, merged)
    target = {"a": torch.empty(4, 3)}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        torch.distributed.checkpoint.load(target, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(target["a"], whole)


class Two(World):
    """The first of two ranks; the other one has written a large index."""

    size = 2

    def gather(self, value):
        return [value, [1 << 30, 0]]


def test_where_indexes_are_large_there_is_none(tmp_path):
    """Rank 0 would have to read them all."""
    content = {"a": torch.ones(2)}
    sharded_checkpoint.write(
        content, tmp_path / "a.pth", world=Two(), is_sharded=lambda it: isinstance(it, torch.Tensor)
    )
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {
        "fitkit.json", "index.0.json", "__0_0.distcp"
    }  # fmt: skip
    assert METADATA_NAME not in torch.load(tmp_path / "a.pth")["__fitkit_shards__"]["files"]
