"""EarlyStoppingConfig: the configuration of an EarlyStopping, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class EarlyStoppingConfig(NamedTuple):
    """The configuration of an ``EarlyStopping``, in the order of its identity in a checkpoint.

    Not in the callback's file, because reports read it and must not import callbacks.
    """

    monitor: str
    mode: str
    min_delta: float
    patience: int
    baseline: float | None
    start_from_epoch: int
    stopping_threshold: float | None
    divergence_threshold: float | None
    restore_best_weights: bool
    check_finite: bool

    def to_identity(self) -> str:
        """The values, separated by spaces."""
        return " ".join(map(str, self))

    @classmethod
    def from_identity(cls, identity: str) -> EarlyStoppingConfig:
        """The configuration that ``to_identity`` wrote.

        Raises:
            ValueError: the text is something else.

        >>> config = EarlyStoppingConfig("val loss", "min", 0.1, 3, None, 0, 0.5, None, True, True)
        >>> EarlyStoppingConfig.from_identity(config.to_identity()) == config
        True
        """
        # from the right, as a monitored name may contain spaces
        texts = identity.rsplit(" ", len(cls._fields) - 1)
        return cls(*(parse(text) for parse, text in zip(_PARSERS, texts, strict=True)))


def _optional_float(text: str) -> float | None:
    return None if text == "None" else float(text)


_Parser = Callable[[str], Any]
_LIMITS: tuple[_Parser, ...] = (_optional_float, _optional_float, "True".__eq__, "True".__eq__)
_PARSERS: tuple[_Parser, ...] = (str, str, float, int, _optional_float, int, *_LIMITS)
