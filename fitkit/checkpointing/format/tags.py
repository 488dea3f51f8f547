"""The tags of dicts that stand for values of other types than a file holds."""

TAG = "__fitkit__"  # the key of the tag
STUB = "piece"  # of what stands for a tensor in a shard folder
