"""Callback: the base class of all callbacks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from fitkit.core.constructor_arguments import constructor_arguments
from fitkit.core.errors import CheckpointError, ConfigurationError, listed
from fitkit.core.handler import Handler
from fitkit.core.logs import Logs
from fitkit.core.same_structure import require_same_structure
from fitkit.core.state_placement import copied, copy_to_host, place_like
from fitkit.core.tree import map_tensors

_NO_PARAMS: Mapping[str, Any] = MappingProxyType({})
_NO_HANDLER: Any = None  # before training begins


class Callback:
    """Base class of callbacks. Override the hooks you need; the others cost nothing.

    A subclass needs no ``__init__`` and no call of ``super().__init__()``. Attributes that must
    survive a restart are named in ``state_fields``; all others are configuration, which comes from
    the constructor in the resuming script.

    Life cycle: ``__init__``; then ``reset`` for a fresh ``fit`` **or** ``load_state_dict`` for a
    resumed one; then hooks. A hook must not change a saved field only because training begins.

    Attributes:
        state_fields: names of the attributes that are saved in checkpoints, in addition to those
            of the parent classes.
        order: callbacks run by ascending ``order``, then by their position in the list. The default
            is 0; callbacks that monitor a logged value use 50, loggers 100.
        spans_fits: ``True`` if the state belongs to the whole run, so that a second ``fit`` of the
            same handler continues it instead of resetting it.
        writes_files: ``True`` for savers and loggers, which a trial run leaves out.
        may_log: whether it may log values of its own in some epochs, for which monitors wait.
        batch_logs_interval: it reads ``logs`` of ``on_train_batch_end`` and ``on_test_batch_end``
            in every n-th batch (for training by ``state.global_step``); 0: never. With several
            ranks these values are summed over the ranks only if a callback reads them, and the logs
            of other batches are empty.
        needs_all_ranks: ``True`` if it must be attached on all ranks, because it changes training
            or communicates.
        name: key of the state in a checkpoint; the class name unless set.
        handler: the handler that runs the callback, set when training begins.
        run: the run that the state belongs to, set when ``fit`` begins.
        params: facts about the call: ``epochs``, ``first_epoch``, ``steps``, ``validation``,
            ``validation_sets``, ``validate_every``, ``metrics``, ``resumed``.

    >>> class CountBatches(Callback):
    ...     state_fields = ("count",)
    ...     def __init__(self):
    ...         self.count = 0
    ...     def on_train_batch_end(self, batch, logs):
    ...         self.count += 1
    >>> CountBatches().state_dict()
    {'count': 0}
    """

    state_fields: ClassVar[tuple[str, ...]] = ()
    # Whether the fields that this class declares keep the types that __init__ gives them, so that a
    # checkpoint with others is refused. Fields of a user's class may change their types.
    has_fixed_state_types: ClassVar[bool] = False
    _fixed_fields: ClassVar[tuple[str, ...]] = ()
    # Fields of built-in classes that are a number, or None before there is one.
    optional_numbers: ClassVar[tuple[str, ...]] = ()
    order: int = 0
    spans_fits: bool = False
    writes_files: bool = False
    may_log: bool = True
    batch_logs_interval: int = 1
    needs_all_ranks: bool = False
    # whether it logs values in on_epoch_end that later callbacks may read; None: as may_log
    logs_at_epoch_end: bool | None = None
    name: str = "Callback"
    handler: Handler = _NO_HANDLER
    run: object = None
    params: Mapping[str, Any] = _NO_PARAMS
    _initial_state: dict[str, Any] | None = None
    _known_config: dict[str, Any] | None = None
    _initial_own_state: dict[str, Any] | None = None  # that of an overridden state_dict

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        declared: Any = cls.__dict__.get("state_fields", ())
        if isinstance(declared, str):
            raise ConfigurationError(
                f"{cls.__name__}.state_fields must be a tuple of attribute names, received the "
                f"string {declared!r}: write ({declared!r},)."
            )
        inherited = [vars(base).get("state_fields", ()) for base in reversed(cls.__mro__)]
        if cls.__dict__.get("has_fixed_state_types", False):
            cls._fixed_fields = (*cls._fixed_fields, *declared)
        cls.state_fields = tuple(dict.fromkeys(name for fields in inherited for name in fields))

    @property
    def model(self) -> nn.Module:
        """The trained model, without wrappers."""
        return self.handler.module

    def identity(self) -> str:
        """What gives the state its meaning, such as the monitored name and its mode.

        A state goes to a callback of the same name and identity; what else is configured may
        change between two starts.
        """
        return ""

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, as far as they are attributes of plain types.

        Checkpoints hold it next to the state: it tells callbacks of one identity apart, and a
        resume says what has changed.
        """
        state = {*self.state_fields, *self.state_dict()}
        return constructor_arguments(self, without=state | {"name"})

    def known_config(self) -> dict[str, Any]:
        """``config`` as it was when training began; some arguments change while they are used."""
        return self.config() if self._known_config is None else self._known_config

    def remember_config(self) -> None:
        """Store ``config`` when training begins."""
        self._known_config = copy.deepcopy(self.config())

    def log(self, name: str, value: Any) -> None:
        """Add ``value`` (one number) to the logs of this epoch, which every logger receives.

        With several ranks the logs hold the value of rank 0. The ranks share it before a scheduler,
        a monitor or a callback of a higher ``order`` reads the logs of the epoch.
        """
        self.handler.log(name, value)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The attributes named in ``state_fields``."""
        return {name: getattr(self, name) for name in self.state_fields}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            CheckpointError: keys are missing or unknown; nothing was changed.
        """
        missing = set(self.state_fields) - set(state_dict)
        unknown = set(state_dict) - set(self.state_fields)
        if missing or unknown:
            raise CheckpointError(
                f"the saved state of callback {self.name!r} does not fit its state_fields: "
                f"missing {listed(missing)}, unknown {listed(unknown)}. Resume with the class that "
                f"wrote it, or pass skip_callbacks=True to NNHandler.load."
            )
        for name, value in (self._initial_state or {}).items():
            if name in self._fixed_fields:
                require_same_structure(state_dict[name], value, f"{name} of callback {self.name!r}")
        for name in self.optional_numbers:
            require_same_structure(state_dict[name], 0.0, f"{name} of callback {self.name!r}")
        for name in self.state_fields:
            setattr(self, name, copy.deepcopy(state_dict[name]))

    def remember_initial_state(self) -> None:
        """Store the state that the constructor made, once, for ``reset``."""
        if self._initial_state is not None:
            return
        try:
            fields = {name: getattr(self, name) for name in self.state_fields}
        except AttributeError as error:
            raise ConfigurationError(
                f"callback {self.name!r} names {error.name!r} in state_fields but has no such "
                f"attribute when training begins: set it in __init__ (or on the class)."
            ) from error
        if type(self).state_dict is not Callback.state_dict:
            # on the host: the device may have no room for a second copy
            own_state = map_tensors(copy_to_host, self.state_dict())
            self._initial_own_state = copied(own_state, f"the state of callback {self.name!r}")
        where = f"the state of callback {self.name!r}: "
        self._initial_state = {n: copied(value, where + n) for n, value in fields.items()}

    def reset(self) -> None:
        """Return to the state that the constructor made, for a ``fit`` that does not resume."""
        if self._initial_own_state and type(self).load_state_dict is not Callback.load_state_dict:
            own_state = copy.deepcopy(self._initial_own_state)
            self.load_state_dict(place_like(own_state, self.state_dict()))
            return
        for name, value in (self._initial_state or {}).items():
            setattr(self, name, copy.deepcopy(value))

    # ---- training -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """``fit`` begins; also called when it resumes."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Epoch ``epoch`` (from 0) begins; not called again by a resume in the middle of it."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before training on batch ``batch`` (from 0 in this epoch)."""

    def on_optimizer_step_begin(self, step: int, logs: Logs) -> None:
        """Gradients are complete and unscaled, and not yet clipped by ``fit``."""

    def on_optimizer_step_end(self, step: int, logs: Logs) -> None:
        """After optimizer step ``step`` (from 0 over the run); gradients are not yet cleared.

        Not called for a step that a loss scaler skipped.
        """

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """After training on batch ``batch``; ``logs`` holds its loss and metrics, read lazily."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Epoch ``epoch`` has ended; ``logs`` holds the values over the whole epoch."""

    def on_train_end(self, logs: Logs) -> None:
        """``fit`` ends, also after an error; ``logs`` holds the last epoch's values."""

    # ---- validation, evaluation, prediction -----------------------------------------------------

    def on_test_begin(self, logs: Logs) -> None:
        """The evaluation of one set (``self.handler.state.evaluation_set``) begins."""

    def on_test_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before evaluating batch ``batch``."""

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """After evaluating batch ``batch``."""

    def on_test_end(self, logs: Logs) -> None:
        """An evaluation has ended; ``logs`` holds its values without ``val_``."""

    def on_predict_begin(self, logs: Logs) -> None:
        """A prediction begins."""

    def on_predict_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before predicting batch ``batch``."""

    def on_predict_outputs(self, batch: int, outputs: Any) -> None:
        """``outputs`` of batch ``batch`` on the CPU, as ``predict_batches`` yields them."""

    def on_predict_batch_end(self, batch: int, logs: Logs) -> None:
        """After predicting batch ``batch``."""

    def on_predict_end(self, logs: Logs) -> None:
        """A prediction has ended."""

    # ---- checkpoints and errors -----------------------------------------------------------------

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """A checkpoint was completely written to ``path`` and flushed to disk."""

    def on_exception(self, error: BaseException) -> None:
        """``error`` (or an interrupt) ends training; ``on_train_end`` follows."""


class BuiltinCallback(Callback):
    """A built-in callback: it may use internals of the handler, such as the save queue.

    Args:
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Raises:
        ConfigurationError: the name is not a string, or is empty.
    """

    may_log = False
    batch_logs_interval = 0
    needs_all_ranks = True
    handler: Any = None

    def __init__(self, *, name: str | None = None) -> None:
        if name is not None:
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"name must be a non-empty string, received {name!r}.")
            self.name = name

    def identity_of_file(self, name: str) -> str:
        """A file's name as part of the identity; a callback with a name of its own needs none."""
        return "" if "name" in vars(self) else name
