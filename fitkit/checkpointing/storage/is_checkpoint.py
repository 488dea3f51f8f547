"""Which files are checkpoints, by name and first bytes: one rule for listing, loading, deleting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt")
SHARDS_SUFFIX = ".shards"  # of a folder
TEMP_SUFFIX = ".fitkit-tmp"
_ZIP_HEADER_BYTES = 30


def may_be_checkpoint(path: Path) -> bool:
    """Whether ``path`` has a checkpoint's suffix or was written by ``torch.save``.

    Temporary files and the files of a shard folder are not checkpoints.
    """
    if path.name.endswith(TEMP_SUFFIX) or path.parent.name.endswith(SHARDS_SUFFIX):
        return False
    return path.is_file() and (path.suffix in CHECKPOINT_SUFFIXES or is_torch_file(path))


def list_checkpoints(folders: Iterable[Path]) -> list[Path]:
    """The files in ``folders`` that may be checkpoints, each once; folders may be missing."""
    files = (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()))
    return list(dict.fromkeys(path.resolve() for path in files if may_be_checkpoint(path)))


def is_torch_file(path: Path) -> bool:
    """Whether the file begins as ``torch.save`` writes it; other zip files are not ours."""
    try:
        with path.open("rb") as file:
            header = file.read(_ZIP_HEADER_BYTES)
            first_name = file.read(int.from_bytes(header[26:28], "little"))
    except OSError:
        return False
    return header[:4] == b"PK\x03\x04" and first_name.endswith(b"/data.pkl")
