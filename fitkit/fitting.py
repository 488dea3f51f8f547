"""One call of fit from its arguments to its history: attach, resume, train, detach."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.assembly import describe_run, fit_run, training_specs
from fitkit.callbacks.history import History
from fitkit.checkpointing import discovery
from fitkit.checkpointing.saver import Saver
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointNotFoundError, ConfigurationError, Preempted
from fitkit.core.state import FitState
from fitkit.core.state import Phase as EpochPhase
from fitkit.engine import loop
from fitkit.engine.run import FitRun
from fitkit.options import FitOptions
from fitkit.runtime.logger import close_files
from fitkit.runtime.rng import capture_streams, derive_seed, restore_streams, seed_streams
from fitkit.runtime.signals import SignalWatch
from fitkit.snapshot import restore

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

_FILE_SUFFIXES = (".pth", ".pt", ".ckpt")


class Unfinished:
    """What a run has at hand only while ``fit`` is under way, kept in between for saving.

    Attributes:
        run: the run under way, or ``None``.
        loaded: whether a checkpoint was loaded that the next ``fit`` has to go on from.
        scheduler: the state of a scheduler that is yet to be set.
        unheard: an event that some callbacks have yet to hear.
    """

    KEYS = ("progress", "loader", "scaler_state_dict", "rng")

    def __init__(self) -> None:
        self.run: FitRun | None = None
        self.loaded = False
        self.scheduler: dict[str, Any] | None = None
        self.unheard: dict[str, Any] | None = None
        self._kept: dict[str, Any] = {}

    def describe(self, state: FitState) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Progress, loader positions and loss scaler, of the run or as kept."""
        if self.run is not None:
            scaler = self.run.forward.precision.state_dict()
            return self.run.progress(), self.run.positions(), scaler
        progress = {**self._kept.get("progress", {}), "state": state.state_dict()}
        return progress, self._kept.get("loader", {}), self._kept.get("scaler_state_dict", {})

    def load(self, saved: dict[str, Any]) -> None:
        """Keep what a checkpoint holds for the next ``fit``."""
        self._kept = saved
        self.unheard = saved["progress"].get("unheard")
        self.loaded = True

    def remember(self) -> Callable[[], None]:
        """A function that puts everything back as it is now."""
        before = dict(vars(self))
        return lambda: vars(self).update(before)

    def begin(self, run: FitRun) -> None:
        """``run`` is under way; what was kept goes into it."""
        if self._kept:
            run.restore(self._kept["progress"], self._kept["loader"])
            run.forward.precision.load_state_dict(self._kept["scaler_state_dict"])
        self.run = run

    def end(self) -> None:
        """The run is over; keep what a save or a later ``fit`` needs."""
        if self.run is not None:
            progress, loader, scaler = self.describe(self.run.state)
            self._kept = {"progress": progress, "loader": loader, "scaler_state_dict": scaler}
            self._kept["rng"] = capture_streams()
        self.run = None
        self.loaded = False

    def forget_window(self) -> None:
        """A new call starts the interrupted epoch over: drop what was added up inside it."""
        if self._kept:
            self._kept = {**self._kept, "progress": {}}

    @property
    def streams(self) -> dict[str, Any] | None:
        """The random streams as kept."""
        return self._kept.get("rng")

    def streams_to_save(self, *, own: bool) -> dict[str, Any] | None:
        """The streams that the next batch draws from; ``None`` if the run has yet to begin them.

        Args:
            own: whether the handler draws from streams of its own, not from the program's.
        """
        waits = self.run is None and (own or self.loaded)
        return self.streams if waits else capture_streams()


def run_fit(handler: NNHandler, options: FitOptions) -> History:
    """Train as ``options`` say.

    Raises:
        FitkitError: something is missing or does not fit; nothing was trained.
        BaseException: what a hook, the model or the data raised.
    """
    if handler.unfinished.run is not None:
        raise ConfigurationError(
            "fit was called while a fit of the same handler is under way: call it after that one."
        )
    handler.parts.require_trainable()
    training_specs(handler, options)
    if options.fast_dev_run:
        return _dry_run(handler, options)
    attached = _attach(handler, options)
    try:
        return _fit_attached(handler, options)
    finally:
        handler.unfinished.end()
        handler.callbacks.depart(attached)
        close_files(handler.logger)


def _attach(handler: NNHandler, options: FitOptions) -> list[Callback]:
    attached: list[Callback] = []
    extra = options.extra_callbacks([*handler.callbacks, *options.callbacks])
    try:
        for callback in (*options.callbacks, *extra):
            handler.callbacks.add(callback)
            attached.append(callback)
    except BaseException:
        handler.callbacks.depart(attached)
        raise
    return attached


def _fit_attached(handler: NNHandler, options: FitOptions) -> History:
    state, unfinished = handler.state, handler.unfinished
    handler.gradient_accumulation_steps = options.gradient_accumulation_steps
    if options.seed is not None:
        handler.adopt_seeds(options.seed, options.seed)
    goes_on, is_over = _resume(handler, options)
    if is_over:
        return handler.history
    resumed = goes_on or unfinished.loaded
    if not resumed:
        _start_over(handler)
    first_epoch = state.first_epoch if goes_on else state.epoch
    first_step = state.first_step if goes_on else state.global_step
    with SignalWatch((signal.SIGINT, *options.preemption_signals)) as watch:
        run = fit_run(handler, options, lambda: _raise_signal(watch), (first_epoch, first_step))
        run.recover = lambda: _finish_what_was_under_way(handler, goes_on=goes_on)
        params = describe_run(run, options, first_epoch, handler.parts.metrics, resumed=resumed)
        handler.callbacks.bind(handler, params, handler.settle_saves)
        handler.callbacks.begin()
        unfinished.begin(run)
        handler.count_call(new=not goes_on)
        handler.module.train()
        return _train(handler, run, watch, resumed=resumed, reseed=options.seed is not None)


def _train(
    handler: NNHandler, run: FitRun, watch: SignalWatch, *, resumed: bool, reseed: bool
) -> History:
    outside = _enter_streams(handler, resumed=resumed, reseed=reseed)
    handler.history.interrupted = False
    try:
        loop.fit(run)
        _raise_signal(watch)  # one that came after the last batch
    except KeyboardInterrupt:
        handler.history.interrupted = True
        handler.logger.warning("interrupted after %d training batches", run.state.global_step)
    except Preempted as error:  # the interpreter shows nothing of it, so what went wrong is logged
        for note in getattr(error, "__notes__", ()):
            handler.logger.error("while the process was ended: %s", note)
        raise
    finally:
        handler.unfinished.end()
        if outside is not None:
            restore_streams(outside)
    if run.state.stop_reason is not None:
        handler.logger.info("training was stopped: %s", run.state.stop_reason)
    return handler.history


def _finish_what_was_under_way(handler: NNHandler, *, goes_on: bool) -> None:
    """Let everybody hear the event in which the checkpoint was made, and write its other files."""
    unheard, handler.unfinished.unheard = handler.unfinished.unheard, None
    if unheard is not None:
        handler.callbacks.finish_event(unheard)
    for saver in handler.callbacks:
        if isinstance(saver, Saver):
            saver.ask_again() if goes_on else saver.finish(())
    handler.settle_saves()


def _enter_streams(handler: NNHandler, *, resumed: bool, reseed: bool) -> dict[str, Any] | None:
    """Put the random streams where this run needs them.

    A handler with a seed draws from streams of its own, which go on from fit to fit; those of the
    program are returned, to be put back. Without a seed the run draws from the program's.
    """
    seed, kept = handler.seed, handler.unfinished.streams
    outside = None if seed is None else capture_streams()
    if kept is not None and (resumed or (seed is not None and not reseed)):
        restore_streams(kept)
    elif seed is not None:
        seed_streams(derive_seed(seed, "fit"))
    return outside


def _start_over(handler: NNHandler) -> None:
    """A call that does not resume begins with an epoch's beginning."""
    if handler.state.phase is not EpochPhase.BEGIN:
        handler.state.enter(EpochPhase.BEGIN)
        handler.unfinished.forget_window()
    handler.state.mid_step = False
    if handler.optimizer is not None:
        handler.optimizer.zero_grad(set_to_none=True)


def _raise_signal(watch: SignalWatch) -> None:
    if watch.received is None:
        return
    if watch.received is signal.SIGINT:
        raise KeyboardInterrupt
    raise Preempted(watch.received)


# ---- resuming -----------------------------------------------------------------------------------


def _resume(handler: NNHandler, options: FitOptions) -> tuple[bool, bool]:
    """Load the checkpoint that ``resume`` means.

    Returns:
        whether this call goes on with an interrupted one, and whether this call was complete when
        the checkpoint was made, because a later call had begun.
    """
    path, is_explicit = _find(handler, options.resume)
    if path is None:
        return False, False
    saved = discovery.read_full(path)
    call = saved["progress"]["state"]["call"]
    this_call = handler.calls_made + 1
    if not is_explicit and call < this_call:
        return False, False
    restore(handler, saved)
    if saved["progress"]["state"]["mid_step"]:
        warnings.warn(
            f"{str(path)!r} was saved in the middle of a training step: the run goes on with the "
            f"step's batch, but not bit for bit as it would have.",
            stacklevel=2,
        )
    if handler.state.stopping and not handler.state.stop_is_final:
        handler.state.clear_stop()
    handler.logger.info("resuming from %s", path)
    is_over = not is_explicit and call > this_call
    if is_over:
        handler.count_call(new=False)
    return True, is_over


def _find(handler: NNHandler, resume: Any) -> tuple[Path | None, bool]:
    """The file to resume from, and whether the user named this very file."""
    if resume is None or resume is False:
        return None, False
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
    return path, True


def _parents(folder: Path) -> list[Path]:
    return list(folder.resolve().parents)


def _newest(handler: NNHandler, folders: list[Path]) -> Path | None:
    found = discovery.newest(folders)
    for sentence in found.passed_over:
        warnings.warn(f"passed over while looking for a checkpoint: {sentence}", stacklevel=2)
    if found.path is None:
        handler.logger.info("no checkpoint to resume from: starting afresh")
    return found.path


# ---- trying out ---------------------------------------------------------------------------------


def _dry_run(handler: NNHandler, options: FitOptions) -> History:
    """One batch each of training and validation, without files; the handler is as before."""
    callbacks, unfinished, calls_made = handler.callbacks, handler.unfinished, handler.calls_made
    departed, callbacks.departed = callbacks.departed, []
    handler.unfinished = Unfinished()
    before, streams = handler.get_state_dict(), capture_streams()
    silent = [callback for callback in callbacks if callback.writes_files]
    kept = [callback for callback in options.callbacks if not callback.writes_files]
    for callback in silent:
        callbacks.remove(callback)
    tried = History()
    try:
        run_fit(handler, replace(options, callbacks=tuple(kept), fast_dev_run=False, resume=None))
        tried.load_state_dict(handler.history.state_dict())
    finally:
        restore(handler, before)
        restore_streams(streams)
        callbacks.departed, handler.unfinished = departed, unfinished
        handler.calls_made = calls_made
        for callback in silent:
            callbacks.add(callback)
    return tried
