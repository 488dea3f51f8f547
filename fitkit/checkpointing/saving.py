"""Writing a handler's state: one file, or one file for each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.checkpointing import archive, files
from fitkit.checkpointing.plain import to_plain
from fitkit.core.errors import CheckpointError, did_you_mean, listed

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

DEFAULT_PARTS = ("model_state_dict", "optimizer_state_dict", "model_kwargs")


def save_single_file(nn_handler: NNHandler, state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` to one file; on return it is whole and durable.

    Args:
        nn_handler: its logger is told of success and failure.
        state: what ``handler.get_state_dict()`` returns, or a part of it; not changed.
        path: the file; its folder is made.

    Raises:
        SaveError: it could not be written; an earlier file of that name is as it was.
        CheckpointError: the state holds something that a checkpoint cannot hold.
    """
    _write(nn_handler, dict(state), Path(path))


def save_multi_files(
    nn_handler: NNHandler,
    state: Mapping[str, Any],
    path: str | Path,
    keys_to_save: Sequence[str] | None = None,
) -> None:
    """Write parts of ``state`` to files of their own: ``model.pth`` gives ``model_<key>.pth``.

    The ``seed``, and the SDE as ``sde_class`` and ``sde_kwargs``, go into the saved
    ``model_kwargs``; ``state`` itself is not changed.

    Args:
        nn_handler: its logger is told of success and failure.
        state: what ``handler.get_state_dict()`` returns.
        path: the base path.
        keys_to_save: keys of ``state``; by default model, optimizer and the model's arguments.

    Raises:
        CheckpointError: a key is not in ``state``; nothing was written.
        SaveError: a file could not be written.
    """
    for part_path, content in _parts(state, Path(path), keys_to_save).items():
        _write(nn_handler, content, part_path)


def save_multi_from_single(path: str | Path, keys_to_save: Sequence[str] | None = None) -> None:
    """Write parts of the checkpoint ``path`` to files of their own, next to it.

    Args:
        path: a checkpoint; it stays as it is.
        keys_to_save: as for ``save_multi_files``.

    Raises:
        CheckpointError: the file cannot be used, or a key is not in it; nothing was written.
        SaveError: a file could not be written.
    """
    state = archive.read(Path(path), mmap=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(state).__name__}, not named parts.")
    for part_path, content in _parts(state, Path(path), keys_to_save).items():
        files.write(content, part_path)


def _write(nn_handler: NNHandler, content: Any, path: Path) -> None:
    try:
        files.write(to_plain(content), path)
    except CheckpointError as error:
        nn_handler.logger.error("%s", error)
        raise
    nn_handler.logger.info("saved %s", path)


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
    suffix = path.suffix or ".pth"
    return {path.with_name(f"{path.stem}_{key}{suffix}"): _part(state, key) for key in keys}


def _part(state: Mapping[str, Any], key: str) -> Any:
    if key != "model_kwargs":
        return state[key]
    kwargs = dict(state[key] or {})
    sde = state.get("sde")
    named = {} if sde is None else {"sde_class": sde["class"], "sde_kwargs": sde["kwargs"]}
    for name in ("seed", "sde_class", "sde_kwargs"):
        value = named.get(name, state.get(name))
        if value is not None:
            kwargs[name] = value
    return kwargs
