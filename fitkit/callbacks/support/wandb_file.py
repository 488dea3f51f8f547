"""WandbFile: reads the logged steps of a local ``.wandb`` file.

W&B has no reader for its own files. They are logs in LevelDB's format (records cut into blocks of
32 KiB, https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_FRAGMENT_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _LAST = 1, 4  # kinds of fragments that end a record


class WandbFile:
    """Reads a ``.wandb`` file, also while it is being written.

    Args:
        path: the file; it need not exist yet.

    Attributes:
        last_step: the largest step that was read so far.
        is_complete: whether the record that ends a finished run was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_step = 0
        self.is_complete = False
        self._position = _HEADER_BYTES

    def read_steps(self) -> dict[int, dict[str, float]]:
        """The numbers of each step since the last call; an incomplete record is left for later."""
        from wandb.proto.wandb_internal_pb2 import Record

        steps: dict[int, dict[str, float]] = {}
        for content in self.read_records():
            record = Record.FromString(content)
            self.is_complete = record.WhichOneof("record_type") == "exit"
            if record.WhichOneof("record_type") == "history":
                items = (
                    (i.key or "/".join(i.nested_key), i.value_json) for i in record.history.item
                )
                values = dict(_numbers(items))
                step = int(values.pop("_step", record.history.step.num))
                steps[step] = values
                self.last_step = max(self.last_step, step)
        return steps

    def read_records(self) -> Iterator[bytes]:
        """The complete records since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return
        start, offset, record = self._position, 0, b""
        while offset + _FRAGMENT_HEADER.size <= len(data):
            left = _BLOCK_BYTES - (start + offset) % _BLOCK_BYTES
            if left < _FRAGMENT_HEADER.size:  # too short for a header: filled with zeros
                offset += left
                continue
            _, length, kind = _FRAGMENT_HEADER.unpack_from(data, offset)
            end = offset + _FRAGMENT_HEADER.size + length
            if kind == 0 or end > len(data):
                return
            record += data[end - length : end]
            offset = end
            if kind in (_WHOLE, _LAST):
                self._position = start + offset
                yield record
                record = b""


def _numbers(items: Iterator[tuple[str, str]]) -> Iterator[tuple[str, float]]:
    for name, text in items:
        value = json.loads(text)
        if isinstance(value, (int, float)) or value in ("NaN", "Infinity", "-Infinity"):
            yield name, float(value)
