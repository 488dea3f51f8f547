"""Save a handler's state: as one file, or as one file for each key."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fitkit.checkpointing.format import schema, tensor_stubs
from fitkit.checkpointing.format.encoding import encode
from fitkit.checkpointing.storage import atomic_write, run_record, single_or_sharded
from fitkit.core.errors import CheckpointError, did_you_mean, listed
from fitkit.core.handler import Handler
from fitkit.distributed.dtensor import is_dtensor

DEFAULT_PARTS = ("model_state_dict", "optimizer_state_dict", "model_kwargs")
# The part of a whole checkpoint that names the others, and has the run record of a file that was
# split; what an earlier version split has none.
ALL_KEYS = "all_keys"


def save_single_file(nn_handler: Handler, state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` to one file; on return it is complete and durable.

    Args:
        nn_handler: its logger reports success and failure.
        state: what ``handler.get_state_dict()`` returns, or a part of it; not changed.
        path: the file; its folder is made.

    Raises:
        SaveError: it could not be written; an earlier file of that name is unchanged.
        CheckpointError: the state holds something that a checkpoint cannot hold.
    """
    _write(nn_handler, dict(state), Path(path))


def save_multi_files(
    nn_handler: Handler,
    state: Mapping[str, Any],
    path: str | Path,
    keys_to_save: Sequence[str] | None = None,
) -> None:
    """Write parts of ``state`` to one file each: ``model.pth`` gives ``model_<key>.pth``.

    The ``seed``, and the SDE as ``sde_class`` and ``sde_kwargs``, go into the saved
    ``model_kwargs``; ``state`` itself is not changed.

    Args:
        nn_handler: its logger reports success and failure.
        state: what ``handler.get_state_dict()`` returns.
        path: the base path.
        keys_to_save: keys of ``state``; by default model, optimizer and the model's arguments. With
            all of them one more file, ``model_all_keys.pth``, names them for ``merge_parts``.

    Raises:
        CheckpointError: a key is not in ``state``; nothing was written.
        SaveError: a file could not be written.
    """
    for file, content in parts_of(state, Path(path), keys_to_save).items():
        _write(nn_handler, content, file)


def save_multi_from_single(path: str | Path, keys_to_save: Sequence[str] | None = None) -> None:
    """Write parts of the checkpoint ``path`` to one file each, next to it.

    Args:
        path: a checkpoint; not changed.
        keys_to_save: as for ``save_multi_files``.

    Raises:
        CheckpointError: the file cannot be used, or a key is not in it; nothing was written.
        SaveError: a file could not be written.
    """
    state, record = single_or_sharded.read(Path(path), mmap=True), run_record.read(Path(path))
    key_list = part_path(Path(path), ALL_KEYS)
    for file, content in parts_of(state, Path(path), keys_to_save).items():
        atomic_write.write(content, file, record=record if file == key_list else None)


def parts_of(state: Any, path: Path, keys_to_save: Sequence[str] | None = None) -> dict[Path, Any]:
    """The files of ``save_multi_files`` with their contents.

    Raises:
        CheckpointError: ``state`` is not a dict or lacks a key, or a key cannot be a file's name.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{str(path)!r} holds a {type(state).__name__}, expected a checkpoint: a dict."
        )
    keys = list(DEFAULT_PARTS if keys_to_save is None else keys_to_save)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f"the state has no {listed(missing)}; it has {listed(state)}."
            + did_you_mean(missing[0], state)
        )
    contents = {key: state[key] for key in keys}
    if isinstance(contents.get("model_kwargs"), Mapping):
        contents["model_kwargs"] = _model_kwargs(state)
    if schema.is_full(state) and set(keys) == set(state):
        contents[ALL_KEYS] = list(state)
    return {part_path(path, str(key)): content for key, content in contents.items()}


def part_path(path: Path, key: str) -> Path:
    """The file of one part: ``model.pth`` and ``history`` give ``model_history.pth``.

    Raises:
        CheckpointError: the key cannot be part of a file name.

    >>> part_path(Path("runs/model.pth"), "history").as_posix()
    'runs/model_history.pth'
    """
    if re.search(r"[/\\\\\x00]", key):
        raise CheckpointError(f"a part called {key!r} cannot be a file of its own: leave it out.")
    return path.with_name(f"{path.stem}_{key}{path.suffix or '.pth'}")


def merge_parts(path: str | Path) -> dict[str, Any]:
    """Join the files that ``save_multi_files`` wrote to ``path`` to the state of one checkpoint.

    Raises:
        CheckpointError: a part is missing or cannot be used, or together they are not a checkpoint.
    """
    paths = {key: part_path(Path(path), key) for key in _keys_to_merge(Path(path))}
    missing = [key for key, file in paths.items() if not file.exists()]
    if missing:
        raise CheckpointError(
            f"a whole checkpoint needs all its parts; of {str(path)!r} are missing "
            f"{listed(missing)}: there is no {str(paths[missing[0]])!r}, for one. Split the "
            f"original with all its keys."
        )
    state = {key: single_or_sharded.read(file, mmap=True) for key, file in paths.items()}
    if isinstance(state.get("model_kwargs"), dict):  # without what splitting added
        sde = state.get("sde")
        added = {"seed": state.get("seed"), "sde_class": sde, "sde_kwargs": sde}
        state["model_kwargs"] = {
            name: value for name, value in state["model_kwargs"].items() if added.get(name) is None
        }
    return schema.validate(state, path)


def _keys_to_merge(path: Path) -> list[str]:
    """The keys that the checkpoint had; if no file names them, those that every checkpoint has."""
    file = part_path(path, ALL_KEYS)
    if not file.exists():
        found = [key for key in schema.OPTIONAL_KEYS if part_path(path, key).exists()]
        return [*schema.KEYS, *found]
    keys = single_or_sharded.read(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{str(file)!r} does not name keys: split the original again.")
    return keys


def _write(nn_handler: Handler, content: Any, path: Path) -> None:
    with logged(nn_handler.logger, path):
        if tensor_stubs.extract_tensors(content, is_dtensor)[1]:
            raise CheckpointError(
                "a state of a sharded model has only this rank's part of the tensors: call "
                "handler.save(path) on every rank instead."
            )
        atomic_write.write(encode(content), path)


@contextmanager
def logged(logger: logging.Logger, path: str | Path) -> Iterator[None]:
    """Log whether a file was written inside ``with``."""
    try:
        yield
    except CheckpointError as error:
        logger.error("%s", error)
        raise
    logger.info("saved %s", path)


def _model_kwargs(state: Mapping[str, Any]) -> dict[str, Any]:
    sde = state.get("sde")
    added = {name: state.get(name) for name in ("seed", "sde_class", "sde_kwargs")}
    if isinstance(sde, Mapping):
        added |= {"sde_class": sde.get("class"), "sde_kwargs": sde.get("kwargs")}
    known = {name: value for name, value in added.items() if value is not None}
    return {**state["model_kwargs"], **known}
