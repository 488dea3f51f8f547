"""Which checkpoint a call of fit goes on from, and what was under way when it was made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.checkpointing import discovery, schema
from fitkit.checkpointing.saver import Saver
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError
from fitkit.snapshot import restore

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler
    from fitkit.options import FitOptions

_FILE_SUFFIXES = (".pth", ".pt", ".ckpt")


def resume(handler: NNHandler, options: FitOptions) -> tuple[bool, bool]:
    """Load the checkpoint that ``resume`` means.

    Returns:
        whether this call goes on with an interrupted one, and whether this call was complete when
        the checkpoint was made, because a later call had begun.
    """
    found, is_explicit = _find(handler, options.resume)
    path, saved = found.path, found.state
    if path is None:
        return False, False
    call = saved["progress"]["state"]["call"]
    this_call = handler.calls_made + 1
    if not is_explicit and call < this_call:
        return False, False
    restore(handler, saved, is_undone=True)
    if saved["progress"]["state"]["mid_step"]:
        warnings.warn(
            f"{str(path)!r} was saved in the middle of a training step: the run goes on with the "
            f"step's batch, but not bit for bit as it would have.",
            stacklevel=2,
        )
    if handler.state.stopping and not handler.state.stop_is_final:
        handler.state.clear_stop()
    handler.logger.info("resuming from %s", path)
    handler.saves.keep_for_now(path)
    is_over = not is_explicit and call > this_call
    if is_over:
        handler.count_call(new=False)
    return True, is_over


def _require_same_place(handler: NNHandler, place: tuple[int, ...]) -> None:
    """Fail if this process would go on from another place than the main one."""
    main = handler.world.broadcast(place)
    if main != place:
        raise CheckpointError(
            f"rank {handler.world.rank} would resume from {place}, the main process from {main}: "
            f"keep checkpoints in a folder that all processes see."
        )


def _find(handler: NNHandler, resume: Any) -> tuple[discovery.Found, bool]:
    """The file to resume from, and whether the user named this very file."""
    if resume is None or resume is False:
        return discovery.Found(), False
    savers = [callback for callback in handler.callbacks if isinstance(callback, Saver)]
    if resume is True:
        if not savers:
            raise ConfigurationError(
                "resume=True looks where this fit's savers write, but none is attached: call "
                "auto_save, add a ModelCheckpoint, or pass the folder or file to resume from."
            )
        return _newest(handler, [folder for saver in savers for folder in saver.folders]), False
    if not isinstance(resume, (str, Path)):
        raise ConfigurationError(
            f"resume must be a file, a folder, True or None, received {resume!r}."
        )
    path = Path(resume)
    if path.is_dir() or (not path.exists() and path.suffix not in _FILE_SUFFIXES):
        theirs = [folder for saver in savers for folder in saver.folders]
        below = [folder for folder in theirs if path.resolve() in _parents(folder)]
        return _newest(handler, [path, *below]), False
    if not path.exists():
        raise CheckpointNotFoundError(
            f"resume={str(resume)!r}: there is no such file. Pass a folder to start afresh when it "
            f"holds no checkpoint."
        )
    saved = discovery.read_full(path, handler.parallel.empty_piece)
    _require_same_place(handler, schema.place(saved))
    return discovery.Found(path, saved), True


def _parents(folder: Path) -> list[Path]:
    return list(folder.resolve().parents)


def _newest(handler: NNHandler, folders: list[Path]) -> discovery.Found:
    found = discovery.newest(folders, handler.parallel.empty_piece, handler.world)
    for sentence in found.passed_over:
        warnings.warn(f"passed over while looking for a checkpoint: {sentence}", stacklevel=2)
    if found.path is None:
        handler.logger.info("no checkpoint to resume from: starting afresh")
    return found


def finish_what_was_under_way(handler: NNHandler, *, goes_on: bool) -> None:
    """Let everybody hear the event in which the checkpoint was made, and write its other files."""
    unheard, handler.unfinished.unheard = handler.unfinished.unheard, None
    if unheard is not None:
        handler.callbacks.finish_event(unheard)
    for saver in handler.callbacks:
        if isinstance(saver, Saver):
            saver.ask_again() if goes_on else handler.saves.let_go(saver)
    handler.saves.meet()
    handler.saves.settle()
