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
from fitkit.checkpointing.storage import atomic_write, single_or_sharded
from fitkit.core.errors import CheckpointError, did_you_mean, listed
from fitkit.core.handler import Handler
from fitkit.distributed.dtensor import is_dtensor

DEFAULT_PARTS = ("model_state_dict", "optimizer_state_dict", "model_kwargs")


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
        keys_to_save: keys of ``state``; by default model, optimizer and the model's arguments.

    Raises:
        CheckpointError: a key is not in ``state``; nothing was written.
        SaveError: a file could not be written.
    """
    for file, content in _parts(state, Path(path), keys_to_save).items():
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
    state = single_or_sharded.read(Path(path), mmap=True)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{str(path)!r} holds a {type(state).__name__}, expected a checkpoint: a dict."
        )
    for file, content in _parts(state, Path(path), keys_to_save).items():
        atomic_write.write(content, file)


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
    paths = {key: part_path(Path(path), key) for key in schema.KEYS}
    missing = [key for key, file in paths.items() if not file.exists()]
    if missing:
        raise CheckpointError(
            f"a whole checkpoint needs all its parts; of {str(path)!r} are missing "
            f"{listed(missing)}: there is no {str(paths[missing[0]])!r}, for one. Split the "
            f"original with all its keys."
        )
    state = {key: single_or_sharded.read(file, mmap=True) for key, file in paths.items()}
    if isinstance(state["model_kwargs"], dict):  # without what splitting added
        added = {"seed": state["seed"], "sde_class": state["sde"], "sde_kwargs": state["sde"]}
        state["model_kwargs"] = {
            name: value for name, value in state["model_kwargs"].items() if added.get(name) is None
        }
    return schema.validate(state, path)


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


def _parts(
    state: Mapping[str, Any], path: Path, keys_to_save: Sequence[str] | None
) -> dict[Path, Any]:
    keys = list(DEFAULT_PARTS if keys_to_save is None else keys_to_save)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f"the state has no {listed(missing)}; it has {listed(state)}."
            + did_you_mean(missing[0], state)
        )
    parts = {part_path(path, key): state[key] for key in keys}
    if "model_kwargs" in keys and isinstance(state["model_kwargs"], Mapping):
        parts[part_path(path, "model_kwargs")] = _model_kwargs(state)
    return parts


def _model_kwargs(state: Mapping[str, Any]) -> dict[str, Any]:
    sde = state.get("sde")
    added = {name: state.get(name) for name in ("seed", "sde_class", "sde_kwargs")}
    if isinstance(sde, Mapping):
        added |= {"sde_class": sde.get("class"), "sde_kwargs": sde.get("kwargs")}
    known = {name: value for name, value in added.items() if value is not None}
    return {**state["model_kwargs"], **known}
