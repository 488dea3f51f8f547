"""SavedSchedule: the scheduler in a checkpoint, and how a run goes on with it or with another.

What the program sets wins, progress is the checkpoint's: an unchanged scheduler gets its state
back, another one is brought to the step where the run stands.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, ReduceLROnPlateau

from fitkit.checkpointing.format.component_config import encode_class, encode_kwargs
from fitkit.checkpointing.format.encoding import decode
from fitkit.core.errors import ConfigurationError
from fitkit.core.tree_diff import MISSING, differing_leaves
from fitkit.handler.group_options import Options, has_changed, put_options, text_of_change
from fitkit.handler.optimizer_state import load_scheduler
from fitkit.handler.parts import Parts
from fitkit.handler.scheduler_start import SchedulerStart

_PLATEAU_PROGRESS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
_CONFIG = ("class", "kwargs", "interval", "monitor")


@dataclass(frozen=True)
class SavedSchedule:
    """The scheduler in a checkpoint.

    Attributes:
        config: its class, encoded arguments, interval and monitor.
        start: its encoded state when it was built; ``None``: not known.
        state: its state; ``None``: there was no scheduler.
        built: options of the optimizer's groups as the program gave them; ``None``: not known.
        epochs: completed epochs of the run.
        optimizer_steps: optimizer steps of the run.
        options: options of the optimizer's groups, once they are loaded.
    """

    config: dict[str, Any]
    start: dict[str, Any] | None
    state: dict[str, Any] | None
    built: list[Options | None] | None
    epochs: int = 0
    optimizer_steps: int = 0
    options: list[Options] | None = None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], options: list[Options] | None) -> SavedSchedule:
        """The scheduler in ``checkpoint``."""
        groups = decode(checkpoint.get("optimizer_groups"))
        counters = checkpoint["progress"]["state"]
        return cls(
            config={key: checkpoint.get(f"scheduler_{key}") for key in _CONFIG},
            start=checkpoint.get("scheduler_initial_state"),
            state=decode(checkpoint["scheduler_state_dict"]) or None,
            built=None if groups is None else [group["options"] for group in groups],
            epochs=counters["epoch"],
            optimizer_steps=counters["optimizer_steps"],
            options=options,
        )

    def load_into(self, parts: Parts) -> list[str]:
        """Bring the scheduler to where the run stands; returns what changed, in sentences.

        Raises:
            CheckpointError: an unchanged scheduler cannot have the state in the checkpoint.
            ConfigurationError: another schedule is shorter than the run.
        """
        scheduler, optimizer, start = parts.scheduler, parts.optimizer, parts.scheduler_start
        if scheduler is None or optimizer is None or start is None:
            return []
        if self.options is not None:
            put_options(optimizer, self.options)
        is_known = self.built is not None and start.state is not None
        if not is_known or (self.state and self.start is None):
            if self.state:
                load_scheduler(scheduler, self.state)
            return []
        changes = self._changes(parts, start)
        if isinstance(scheduler, ReduceLROnPlateau):
            self._load_plateau(parts, start, is_same=not changes)
            return changes
        scheduled = {"lr", "initial_lr"}
        if "max_momentum" in start.options[0]:  # it cycles momentum, too
            scheduled |= {"momentum", "betas"}
        has_new_rates = has_changed(self.built or (), parts.built_options, scheduled)
        if self.state and not changes and not has_new_rates and self._has_same_functions(scheduler):
            load_scheduler(scheduler, self.state)
            return []
        if not changes:
            follows = "the new rates" if has_new_rates else "another function"
            changes = [f"scheduler {type(scheduler).__name__}: follows {follows}"]
        if self.options and isinstance(scheduler, ChainedScheduler):
            raise ConfigurationError(
                f"{type(scheduler).__name__} was composed at the rates of the loaded run, so it "
                f"cannot take the place of another schedule there: start the script again with "
                f"fit(resume=...), or load with skip_scheduler=True."
            )
        num_steps = self._steps(parts.scheduler_interval)
        start.step(scheduler, optimizer, num_steps)
        where = f"stepped to {parts.scheduler_interval} {num_steps}"
        return [*changes[:-1], f"{changes[-1]} ({where})"]

    def _changes(self, parts: Parts, start: SchedulerStart) -> list[str]:
        """What differs between the scheduler in the checkpoint and that of the program."""
        if not self.is_of(encode_class(parts.scheduler_spec)):
            return [f"scheduler: {self.name} -> {type(parts.scheduler).__name__}"]
        uses = {"interval": parts.scheduler_interval, "monitor": parts.scheduler_monitor}
        changes = text_of_change("scheduler", {key: self.config[key] for key in uses}, uses)
        name = f"scheduler {type(parts.scheduler).__name__}"
        old, new = self.config["kwargs"], encode_kwargs(parts.scheduler_spec)
        if old is not None and new is not None:
            defaults = _defaults(type(parts.scheduler))
            changes += text_of_change(name, {**defaults, **old}, {**defaults, **new})
        return changes or self._changes_of_start(name, parts, start)

    def _changes_of_start(self, name: str, parts: Parts, start: SchedulerStart) -> list[str]:
        """What differs in the state after building; that of a composed one has all arguments."""
        results = {"_last_lr"}
        if has_changed(self.built or (), parts.built_options, {"lr"}):
            results.add("base_lrs")
        return [
            sentence
            for keys, old, new in differing_leaves(self.start, start.state)
            # other versions of a class may have other attributes
            if not (MISSING in (old, new) and isinstance(keys[-1], str))
            if not results & {*map(str, keys)}
            for sentence in text_of_change(name, {_path(keys): old}, {_path(keys): new})
        ]

    @property
    def name(self) -> str:
        """The name of its class, or ``none``."""
        return str(self.config["class"]).rpartition(":")[2] if self.state else "none"

    def is_of(self, class_name: str | None) -> bool:
        """Whether it is of that class."""
        return self.state is not None and self.config["class"] == class_name

    def _has_same_functions(self, scheduler: Any) -> bool:
        """Whether functions, which no checkpoint holds, give the rate of the saved step."""
        if type(scheduler) is not LambdaLR or self.state is None:
            return True
        step, saved = self.state["last_epoch"], self.state["_last_lr"]
        pairs = list(zip(self.state["base_lrs"], scheduler.lr_lambdas, strict=True))
        now, again = ([float(base * function(step)) for base, function in pairs] for _ in range(2))
        # a function that draws gives another rate each time
        return now != again or all(map(math.isclose, now, map(float, saved)))

    def _steps(self, interval: str) -> int:
        """Steps that the program's schedule would have taken by now."""
        taken = _count(self.state)
        if taken is not None and interval == self.config["interval"]:
            return taken
        return self.optimizer_steps if interval == "step" else self.epochs

    def _load_plateau(self, parts: Parts, start: SchedulerStart, *, is_same: bool) -> None:
        """Arguments and progress of a schedule that follows from values, not from steps."""
        state, fresh = self.state, decode(start.state)
        if state is None or "num_bad_epochs" not in state or parts.optimizer is None:
            put_options(parts.optimizer, start.options)  # type: ignore[arg-type]
        elif is_same:
            load_scheduler(parts.scheduler, state)
        else:
            keeps_best = state.get("mode") == fresh["mode"]
            keeps_best = keeps_best and self.config["monitor"] == parts.scheduler_monitor
            kept = _PLATEAU_PROGRESS if keeps_best else _PLATEAU_PROGRESS[2:]
            progress = {key: state[key] for key in kept if key in state}
            load_scheduler(parts.scheduler, {**fresh, **progress})


def _path(keys: tuple[Any, ...]) -> str:
    return ".".join(str(key).lstrip("_") for key in keys)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _count(state: Mapping[str, Any] | None) -> int | None:
    """Steps that a scheduler has taken, by its state; ``None``: it does not say."""
    if state is None or "num_bad_epochs" in state:  # a plateau counts only epochs with its value
        return None
    if "last_epoch" in state:
        return int(state["last_epoch"])
    inner = state.get("_schedulers")
    return _count(inner[0]) if inner else None
