"""Callback: what users subclass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fitkit.core.errors import CheckpointError, ConfigurationError, listed
from fitkit.core.likeness import require_like
from fitkit.core.logs import Logs

if TYPE_CHECKING:
    from torch import nn

_NO_PARAMS: Mapping[str, Any] = MappingProxyType({})


class Callback:
    """Something that listens to a run. Override the hooks you need; the others cost nothing.

    A subclass needs no ``__init__`` and no call of ``super().__init__()``. What it must remember
    across a restart it names in ``state_fields``; everything else is configuration, which the
    constructor of the resuming script decides.

    Life cycle: ``__init__``; then ``reset`` for a fresh call of ``fit`` **or** ``load_state_dict``
    for a resumed one; then hooks. No hook may touch a saved field merely because training begins.

    Attributes:
        state_fields: names of the attributes that are this callback's progress; those of the
            parent classes are always among them.
        order: callbacks run by ascending ``order``, then as they stand in the list. Ordinary
            callbacks are 0, those that judge a logged value 50, loggers 100.
        spans_fits: ``True`` if the progress belongs to the whole run, so that a second ``fit`` of
            the same handler goes on with it instead of resetting it.
        writes_files: ``True`` for savers and loggers, which a trial run leaves out.
        name: key of the state in a checkpoint; the class name unless set.
        handler: the handler that runs it, from the beginning of training on.
        run: the run that the progress belongs to, set when a ``fit`` begins.
        params: facts about the call: ``epochs``, ``first_epoch``, ``steps``, ``validation``,
            ``validate_every``, ``metrics``, ``resumed``.

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
    order: int = 0
    spans_fits: bool = False
    writes_files: bool = False
    name: str = "Callback"
    handler: Any = None
    run: object = None
    params: Mapping[str, Any] = _NO_PARAMS
    _initial_state: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        own: object = cls.__dict__.get("state_fields", ())
        if isinstance(own, str):
            raise ConfigurationError(
                f"{cls.__name__}.state_fields must be a tuple of attribute names, received the "
                f"string {own!r}: write ({own!r},)."
            )
        lineage = [vars(base).get("state_fields", ()) for base in reversed(cls.__mro__)]
        cls.state_fields = tuple(dict.fromkeys(name for fields in lineage for name in fields))

    @property
    def model(self) -> nn.Module:
        """The model that is trained, without any wrapper."""
        module: nn.Module = self.handler.module
        return module

    def identity(self) -> str:
        """What tells two callbacks of one name apart when their states are given back."""
        return ""

    def log(self, name: str, value: Any) -> None:
        """Contribute ``value`` (one number) to the logs of this epoch; every logger gets it."""
        self.handler.log(name, value)

    # ---- progress -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """This callback's progress: the attributes named in ``state_fields``."""
        return {name: getattr(self, name) for name in self.state_fields}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over progress from a checkpoint.

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
        if type(self).__module__.startswith("fitkit."):  # others may let a field become anything
            for name, own in (self._initial_state or {}).items():
                require_like(state_dict[name], own, f"{name} of callback {self.name!r}")
        for name in self.state_fields:
            setattr(self, name, copy.deepcopy(state_dict[name]))

    def remember_initial_state(self) -> None:
        """Keep the progress as the constructor left it, once, for ``reset``."""
        if self._initial_state is None:
            try:
                fields = {name: getattr(self, name) for name in self.state_fields}
            except AttributeError as error:
                raise ConfigurationError(
                    f"callback {self.name!r} names {error.name!r} in state_fields but has no such "
                    f"attribute when training begins: set it in __init__ (or on the class)."
                ) from error
            self._initial_state = copy.deepcopy(fields)

    def reset(self) -> None:
        """Progress as the constructor left it, for a ``fit`` that does not resume."""
        for name, value in (self._initial_state or {}).items():
            setattr(self, name, copy.deepcopy(value))

    # ---- training -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """``fit`` begins, also when it resumes."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Epoch ``epoch`` (from 0) begins; not called again when a resume lands inside it."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` (from 0 in this epoch) is about to be trained on."""

    def on_optimizer_step_begin(self, step: int, logs: Logs) -> None:
        """Gradients are whole and unscaled, not yet clipped by ``fit``: look, clip, log."""

    def on_optimizer_step_end(self, step: int, logs: Logs) -> None:
        """Optimizer step ``step`` (from 0 over the run) was taken; gradients are still there.

        Not called for a step that a loss scaler skipped.
        """

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` is done; ``logs`` holds its own loss and metrics, read lazily."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Epoch ``epoch`` is done; ``logs`` holds its reduced values."""

    def on_train_end(self, logs: Logs) -> None:
        """``fit`` ends, however it ends; ``logs`` holds the last epoch's values."""

    # ---- validation, evaluation, prediction -----------------------------------------------------

    def on_test_begin(self, logs: Logs) -> None:
        """An evaluation begins, in ``fit`` or in ``evaluate``."""

    def on_test_batch_begin(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` is about to be evaluated."""

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` was evaluated."""

    def on_test_end(self, logs: Logs) -> None:
        """The evaluation is done; ``logs`` holds its values without ``val_``."""

    def on_predict_begin(self, logs: Logs) -> None:
        """A prediction begins."""

    def on_predict_batch_begin(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` is about to be predicted."""

    def on_predict_batch_end(self, batch: int, logs: Logs) -> None:
        """Batch ``batch`` was predicted."""

    def on_predict_end(self, logs: Logs) -> None:
        """The prediction is done."""

    # ---- saving and failing ---------------------------------------------------------------------

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """A saver's checkpoint is on disk at ``path``, whole and durable."""

    def on_exception(self, error: BaseException) -> None:
        """``error`` (an interrupt included) ends training; ``on_train_end`` follows."""
