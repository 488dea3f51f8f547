"""Monitor: decides which of two logged values is better; nothing else in fitkit compares them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fitkit.core.argument_checks import require_number
from fitkit.core.errors import MonitorError, did_you_mean, listed
from fitkit.core.handler import Handler
from fitkit.core.validation_sets import UNNAMED, logged_names, sets_of

# fmt: off
_LOWER_IS_BETTER = frozenset(
    (
        "loss", "losses", "error", "errors", "err", "mse", "mae", "rmse", "mape", "msle", "nll",
        "bpd", "bpc", "crossentropy", "entropy", "perplexity", "ppl", "wer", "cer", "fid", "kl",
        "brier", "ece", "hinge", "deviation", "distance", "regret",
    )
)
_HIGHER_IS_BETTER = frozenset(
    (
        "acc", "accuracy", "auc", "auroc", "auprc", "roc", "precision", "recall", "sensitivity",
        "specificity", "f1", "f2", "fbeta", "fmeasure", "iou", "miou", "jaccard", "dice", "map",
        "ap", "bleu", "rouge", "meteor", "r2", "r2score", "score", "psnr", "ssim", "kappa", "mcc",
        "correlation", "pearson", "spearman", "reward", "return", "top1", "top5", "topk",
        "similarity", "likelihood",
    )
)
# fmt: on


def resolve_mode(name: str, mode: str) -> str:
    """``"min"`` or ``"max"`` for a monitored name.

    ``"auto"`` recognizes losses and errors (min) and accuracies and scores (max), with or without
    ``val_``. The last known word of the name decides; ``neg`` or ``negative`` inverts it.

    Raises:
        MonitorError: the mode is unknown, or ``"auto"`` does not know the name.

    >>> resolve_mode("val_top_5_accuracy", "auto"), resolve_mode("rmse", "auto")
    ('max', 'min')
    """
    if mode in ("min", "max"):
        return mode
    if mode != "auto":
        suggestion = did_you_mean(mode, ["auto", "min", "max"]) if isinstance(mode, str) else ""
        raise MonitorError(f"mode must be 'auto', 'min' or 'max', received {mode!r}.{suggestion}")
    words = re.split(r"[^a-z0-9]+", name.lower())
    lower, higher = ("max", "min") if {"neg", "negative"} & set(words) else ("min", "max")
    for word in reversed(words):
        if word in _LOWER_IS_BETTER or word.endswith(("loss", "error")):
            return lower
        if word in _HIGHER_IS_BETTER or word.endswith(("accuracy", "score")):
            return higher
    raise MonitorError(
        f"mode='auto' does not know whether a higher or a lower {name!r} is better: pass "
        f"mode='min' or mode='max'."
    )


class MonitoredValue:
    """The name of a monitored value, and when the epoch logs can be expected to have it.

    Args:
        name: name in the epoch logs, e.g. ``"val_loss"``.
        strict: raise where nothing is known that logs the name; ``False``: wait for it.

    Raises:
        MonitorError: the name is not a string, or is empty.
    """

    def __init__(self, name: str, *, strict: bool = True) -> None:
        if not isinstance(name, str) or not name:
            raise MonitorError(
                f"monitor must be the name of a logged value such as 'val_loss', received {name!r}."
            )
        self.name = name
        self.strict = strict
        self._has_warned = False

    def read(
        self,
        logs: Mapping[str, float],
        params: Mapping[str, Any],
        owner: str,
        handler: Handler | None = None,
    ) -> float | None:
        """The value at the end of an epoch; ``None`` if this epoch has none and a later one may.

        That is so in an epoch without validation, for a name that an earlier epoch has logged, and
        for one that a callback which is not built in may log.

        Raises:
            MonitorError: the name is not in the logs and cannot be expected later.
        """
        if self.name in logs:
            return logs[self.name]
        if not self.strict or self._waits_for_validation(logs, params):
            return None
        if handler is not None:
            if self.name in handler.history.history:
                return None
            if handler.callbacks.may_log and not did_you_mean(
                self.name, logs
            ):  # else it is misspelled
                self._warn_once(owner, handler)
                return None
        raise MonitorError(self.not_logged(logs, owner))

    def _waits_for_validation(self, logs: Mapping[str, float], params: Mapping[str, Any]) -> bool:
        sets = sets_of(params)
        has_validated = any(name in logs for name in logged_names(sets, ["loss"]))
        return self.name.startswith("val_") and bool(sets) and not has_validated

    def _warn_once(self, owner: str, handler: Handler) -> None:
        if not self._has_warned:
            handler.logger.warning(
                "%s monitors %r, which no epoch has logged so far: it waits for a callback to log "
                "it (strict=False: it waits without this line)",
                owner,
                self.name,
            )
        self._has_warned = True

    def check_possible(self, params: Mapping[str, Any], owner: str) -> None:
        """Raise ``MonitorError`` for a value of validation that this ``fit`` does not have."""
        if not self.strict or not self.name.startswith("val_"):
            return
        values, sets = ["loss", *params.get("metrics", ())], sets_of(params)
        if params.get("validation") is False:
            raise MonitorError(
                f"{owner} monitors {self.name!r}, but this fit has no validation: pass "
                f"validation_data= or validation_split=, call set_val_loader, or monitor another "
                f"of {listed(values)}."
            )
        of_sets = logged_names(sets, values)
        if sets and self.name in logged_names([UNNAMED], values) and self.name not in of_sets:
            raise MonitorError(
                f"{owner} monitors {self.name!r}, but the validation sets of this fit have names: "
                f"monitor one of {listed(of_sets)}."
            )

    def not_logged(self, logs: Mapping[str, float], owner: str) -> str:
        """The message for a name that is not in the logs."""
        message = f"{owner} monitors {self.name!r}, which is not logged; logged are {listed(logs)}."
        message += did_you_mean(self.name, logs)
        if not self.name.startswith(("val_", "train_", "test_")) and f"val_{self.name}" in logs:
            message += f" Did you mean 'val_{self.name}'?"
        return f"{message} Pass strict=False to wait for a name that only some epochs log."


class Monitor(MonitoredValue):
    """A monitored name, and the comparison of its values.

    Args:
        name: name in the epoch logs, e.g. ``"val_loss"``.
        mode: ``"min"``, ``"max"`` or ``"auto"`` (by name).
        min_delta: the least improvement that counts, at least 0, in the units of the value.
        strict: as in ``MonitoredValue``.

    >>> Monitor("val_loss").is_better(0.4, than=0.5), Monitor("accuracy").is_better(0.4, than=0.5)
    (True, False)
    """

    def __init__(
        self, name: str, mode: str = "auto", min_delta: float = 0.0, *, strict: bool = True
    ) -> None:
        super().__init__(name, strict=strict)
        require_number("min_delta", min_delta)
        self.mode = resolve_mode(name, mode)
        self.min_delta = abs(float(min_delta))

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` is better than ``than`` (``None``: no best value yet).

        A value that is not finite is never better.
        """
        if not math.isfinite(value):
            return False
        if than is None:
            return True
        if self.mode == "min":
            return value < than - self.min_delta
        return value > than + self.min_delta

    def sort_key(self, value: float) -> float:
        """A key for sorting values from best to worst."""
        return value if self.mode == "min" else -value
