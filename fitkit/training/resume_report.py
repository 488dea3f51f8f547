"""What ``fit`` says on the screen when it resumes: from where, what is left, what differs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fitkit.core.state import Phase
from fitkit.engine.run import FitRun
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.handler_logger import show


def report_resume(
    handler: BaseHandler, run: FitRun, source: str, changes: Iterable[str], *, is_complete: bool
) -> None:
    """One sentence for the resume, then one line for each change of the configuration."""
    position = "nothing is left to do" if is_complete else _position_text(run)
    text = f"fit resumes from {source}: {_done_text(run)}; {position}."
    if is_complete and run.state.stop_reason is not None:
        text += f" Training was stopped: {run.state.stop_reason}."
    _show(handler, [text, *(f"  {change}" for change in changes)])


def report_finished_call(handler: BaseHandler, source: str) -> None:
    """One sentence for a call that was finished before the program was restarted."""
    _show(
        handler,
        [
            f"fit resumes from {source}: call {handler.state.call} of fit is finished, "
            f"{_epochs(handler.state.epoch)} done; nothing is left to do."
        ],
    )


def report_new_start(handler: BaseHandler) -> None:
    """One sentence for a call with ``resume=`` that found no checkpoint."""
    _show(handler, ["fit found no checkpoint to resume from: training begins anew."])


def shown_path(path: Path) -> str:
    """The path as short as it is clear: relative to the current folder if it lies in it."""
    path, current = path.resolve(), Path.cwd()
    return str(path.relative_to(current) if path.is_relative_to(current) else path)


def _show(handler: BaseHandler, lines: Iterable[str]) -> None:
    if handler.world.is_main:
        for line in lines:
            show(handler.logger, line)


def _done_text(run: FitRun) -> str:
    return f"{run.state.epoch} of {_epochs(run.last_epoch)} done"


def _position_text(run: FitRun) -> str:
    """Where training goes on, and what is left."""
    state, total = run.state, run.train.num_batches
    place = f"epoch {state.epoch + 1}"
    if state.phase is Phase.TRAIN and state.batch:
        of_total = "" if total is None else f" of {total}"
        place += f", after batch {state.batch}{of_total}"
    elif state.phase is Phase.TEST and state.batch:
        of_set = f" of {state.evaluation_set!r}" if state.evaluation_set else ""
        place += f", after validation batch {state.batch}{of_set}"
    elif state.phase not in (Phase.BEGIN, Phase.TRAIN):
        place += ", after its training batches"
    left = _epochs(max(run.last_epoch - state.epoch, 1))
    return f"it goes on in {place}, {left} left"


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"
