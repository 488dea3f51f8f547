"""WandbHistory: the steps that are in a file of Weights & Biases.

W&B has no reader for its own files. They are logs in LevelDB's format (records cut into blocks of
32 KiB, https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a head of 7 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_HEAD_BYTES = 7
_BLOCK_BYTES = 32768
_FRAGMENT_HEAD = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _LAST = 1, 4  # kinds of fragments that end a record


class WandbHistory:
    """What is in a ``.wandb`` file, which may be being written.

    Args:
        path: the file; it need not be there yet.

    Attributes:
        last_step: the largest step that was read so far.
        is_complete: whether the end was read: the run was finished, and nothing follows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_step = 0
        self.is_complete = False
        self._position = _HEAD_BYTES

    def read(self) -> dict[int, dict[str, float]]:
        """The numbers of each step, from where the last call left off; a torn end is left out."""
        from wandb.proto.wandb_internal_pb2 import Record

        found: dict[int, dict[str, float]] = {}
        for content in self.records():
            record = Record.FromString(content)
            self.is_complete = record.WhichOneof("record_type") == "exit"
            if record.WhichOneof("record_type") == "history":
                items = (
                    (i.key or "/".join(i.nested_key), i.value_json) for i in record.history.item
                )
                values = dict(_numbers(items))
                step = int(values.pop("_step", record.history.step.num))
                found[step] = values
                self.last_step = max(self.last_step, step)
        return found

    def records(self) -> Iterator[bytes]:
        """Whole records, from where the last one left off."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return
        begin, place, record = self._position, 0, b""
        while place + _FRAGMENT_HEAD.size <= len(data):
            left = _BLOCK_BYTES - (begin + place) % _BLOCK_BYTES
            if left < _FRAGMENT_HEAD.size:  # too short for a head: filled with zeros
                place += left
                continue
            _, length, kind = _FRAGMENT_HEAD.unpack_from(data, place)
            end = place + _FRAGMENT_HEAD.size + length
            if kind == 0 or end > len(data):
                return
            record += data[end - length : end]
            place = end
            if kind in (_WHOLE, _LAST):
                self._position = begin + place
                yield record
                record = b""


def _numbers(items: Iterator[tuple[str, str]]) -> Iterator[tuple[str, float]]:
    for name, text in items:
        value = json.loads(text)
        if isinstance(value, (int, float)) or value in ("NaN", "Infinity", "-Infinity"):
            yield name, float(value)
