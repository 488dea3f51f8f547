"""ModelCheckpoint by its path in the seed documents; it lives in ``model_checkpoint``."""

from fitkit.callbacks.model_checkpoint import ModelCheckpoint

__all__ = ["ModelCheckpoint"]
