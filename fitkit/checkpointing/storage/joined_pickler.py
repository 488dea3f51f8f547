"""JoinedPickler: pickles values between which there are some that are pickled already."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO

from fitkit.checkpointing.format.growing_list import PickledList

# what is before and after the operations for a value, in protocol 2
_BEGIN, _END = b"\x80\2", b"."
_BEGIN_DICT, _END_DICT = b"}(", b"u"


class JoinedPickler(pickle.Pickler):
    """A pickler that writes ``PickledList`` as it is, in dicts.

    Args:
        file: what it writes to.
        protocol: 2.
    """

    def __init__(self, file: BinaryIO, protocol: int | None = None) -> None:
        self._file, self._part = file, io.BytesIO()
        super().__init__(self._part, protocol)  # it knows later what it has pickled before

    def dump(self, content: Any) -> None:
        """Write the pickle of ``content``."""
        self._file.write(_BEGIN)
        self._write(content)
        self._file.write(_END)

    def _write(self, value: Any) -> None:
        if type(value) is PickledList:
            self._file.writelines(value.pieces)
        elif _holds_pickled(value):
            self._file.write(_BEGIN_DICT)
            for key, item in value.items():
                self._write(key)
                self._write(item)
            self._file.write(_END_DICT)
        else:
            super().dump(value)
            self._file.write(self._part.getbuffer()[len(_BEGIN) : -len(_END)])
            self._part.seek(0)
            self._part.truncate()


def _holds_pickled(value: Any) -> bool:
    return type(value) is dict and any(
        type(item) is PickledList or _holds_pickled(item) for item in value.values()
    )
