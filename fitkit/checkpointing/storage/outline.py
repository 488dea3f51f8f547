"""The outline of a file: its kind, and what a list of checkpoints shows. Needs no torch.

A full checkpoint begins with the keys of ``schema.LISTED_KEYS``, so only the beginning of its
pickle is run, on stand-ins; nothing that the file describes is built. The pickle is checked against
its checksum as a whole. Of other files, and those of earlier versions, all of it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.tags import STUB, TAG
from fitkit.checkpointing.storage import archive
from fitkit.checkpointing.storage.pickle_machine import BreaksOffError
from fitkit.checkpointing.storage.pickle_scan import check_pickle
from fitkit.checkpointing.storage.pickle_values import ATTRIBUTES, Dict, LargeInt, Tensor
from fitkit.checkpointing.storage.zip_records import Record
from fitkit.core.limits import MAX_DEPTH

_FIRST_KEY_BYTES = 100  # of a pickle: the first key is in them
# of containers; what is deeper is left out: of the state of a callback, its plain fields are listed
_LEVELS = {"callback_states": 3}


class Opaque:
    """A value that an outline does not have, such as a tensor."""


OPAQUE = Opaque()


class Outline(NamedTuple):
    """What a file is.

    Attributes:
        kind: ``"checkpoint"``, ``"weights"`` or ``"other"``.
        state: the values of a full checkpoint by ``schema.LISTED_KEYS``, not validated.
        is_sharded: whether there is a shard folder.
    """

    kind: str
    state: dict[str, Any]
    is_sharded: bool


def read_outline(path: Path) -> Outline:
    """The outline of a file; what is read of it is verified by its checksums.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: it is truncated, altered, or not a checkpoint.
        UnsafeCheckpointError: what is read holds something other than tensors and plain types.
    """
    archive.require_file(path)
    records, pickles = archive.check_records(path, path, tensors_too=False)
    with archive.as_read_error(path):
        if not pickles:
            raise ValueError("it has no data.pkl")
        is_sharded = _pickled(schema.REFERENCE_KEY) in pickles[0][:_FIRST_KEY_BYTES]
        found = _run_listed(pickles[0], records, levels=1 + is_sharded)
        is_listed = found is not None
        if not is_listed:
            found = check_pickle(pickles[0], *_sizes(pickles[0], records), torch_follows=False)
        content = _get(found, schema.CONTENT_KEY) if is_sharded else found
        kind = "checkpoint" if is_listed or _is_full(content) else _kind_of_other(content)
        state = {
            key: _as_value(_get(content, key), _LEVELS.get(key, MAX_DEPTH))
            for key in schema.LISTED_KEYS
            if kind == "checkpoint" and _has(content, key)
        }
    return Outline(kind, state, is_sharded)


def _run_listed(pickled: bytes, records: list[Record], levels: int) -> Any:
    """The listed keys and their values; ``None`` if the file does not begin with them."""
    end = pickled.find(_pickled(schema.FIRST_OTHER_KEY))
    if not all(pickled.find(_pickled(key), 0, end) >= 0 for key in schema.LISTED_KEYS):
        return None
    beginning = pickled[:end]
    sizes = _sizes(beginning, records)
    try:
        return check_pickle(beginning, *sizes, levels=levels, torch_follows=False)
    except BreaksOffError:  # a callback has a key of that name
        return None


def _sizes(pickled: bytes, records: list[Record]) -> tuple[dict[str, int], int]:
    """The sizes that ``check_pickle`` compares with; those of tensors only if there are any."""
    has_tensors = _pickled("storage") in pickled
    return archive.tensor_bytes(records) if has_tensors else {}, archive.num_bytes(records)


def _pickled(key: str) -> bytes:
    """A key as ``torch.save`` writes it the first time."""
    return b"X" + len(key).to_bytes(4, "little") + key.encode()


def _is_full(found: Any) -> bool:
    return type(found) is Dict and _has(found, "model_state_dict") and _has(found, "progress")


def _kind_of_other(found: Any) -> str:
    pairs = _pairs(found) if type(found) is Dict else []
    is_weights = bool(pairs) and all(_is_weight(key, value) for key, value in pairs)
    return "weights" if is_weights else "other"


def _is_weight(key: Any, value: Any) -> bool:
    if not isinstance(key, bytes):
        return False
    is_stub = type(value) is Dict and _get(value, TAG) == STUB.encode()
    return type(value) is Tensor or is_stub or key.endswith(b"_extra_state")


# ---- stand-ins ----------------------------------------------------------------------------------


def _pairs(found: Dict) -> list[tuple[Any, Any]]:
    pairs = zip(found[::2], found[1::2], strict=True)
    return [(key, value) for key, value in pairs if key is not ATTRIBUTES]


def _has(found: Any, key: str) -> bool:
    return type(found) is Dict and key.encode() in found[::2]


def _get(found: Any, key: str) -> Any:
    """The value of the last ``key``, as when a dict is filled; ``None`` without one."""
    pairs = zip(found[-2::-2], found[::-2], strict=True) if type(found) is Dict else ()
    return next((value for one, value in pairs if one == key.encode()), None)


def _as_value(found: Any, levels: int) -> Any:
    """What a stand-in stands for, with so many levels of containers."""
    kind = type(found)
    if kind is Dict and levels:
        return {
            _as_value(key, levels - 1): _as_value(value, levels - 1) for key, value in _pairs(found)
        }
    if kind in (list, tuple) and levels:
        if {float, int}.issuperset(map(type, found)):  # a column of numbers
            return found
        return kind(_as_value(item, levels - 1) for item in found)
    if isinstance(found, bytes):
        return found.decode("utf-8", "surrogatepass")
    if kind is LargeInt:
        return int(found)
    return found if kind in (int, float, bool, type(None)) else OPAQUE
