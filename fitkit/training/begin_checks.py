"""What is checked, and said, when a ``fit`` begins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fitkit.callbacks.ema import EMA
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.core.callback import Callback
from fitkit.core.errors import DataError
from fitkit.engine.run import DataPass
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.buffer_watch import BufferWatch, unsaved_buffers

# of AutoSaver, in the order of handler.auto_save; paths are stored if they are relative
_AUTO_SAVE_ARGUMENTS = ("save_interval", "save_path", "save_model_name", "overwrite_last_saved")


def drop_unattached_average(handler: BaseHandler) -> None:
    """Drop an average that this fit will not update: nobody trains the weights that it holds."""
    if handler.ema is None or any(isinstance(callback, EMA) for callback in handler.callbacks):
        return
    handler.weights.drop_ema()
    warnings.warn(
        "the weight average (EMA) of earlier training was dropped, because this fit does not "
        "update it: evaluation and saved weights are the trained ones from now on. Pass ema_decay= "
        "or an EMA callback to go on with it.",
        stacklevel=2,
    )


def auto_save_hint(entry: Mapping[str, Any]) -> str:
    """The call that attaches the ``AutoSaver`` of a checkpoint's entry; "" for another callback."""
    if entry["name"] != AutoSaver.name:
        return ""
    config = entry.get("config") or {}
    known = [config[key] for key in _AUTO_SAVE_ARGUMENTS if key in config]
    arguments = ", ".join(map(repr, known)) or "..."
    return f" For automatic saving call handler.auto_save({arguments}) before fit."


def buffer_watches(handler: BaseHandler) -> list[Callback]:
    """The callback that compares buffers which no checkpoint holds, if there are such buffers."""
    modules = handler.parts.trained_modules
    if not handler.world.is_main or not any(map(unsaved_buffers, modules)):
        return []
    watch = BufferWatch(modules)
    callback = LambdaCallback(on_train_batch_end=watch.after_batch, on_epoch_end=watch.after_epoch)
    callback.name, callback.may_log, callback.batch_logs_interval = "BufferWatch", False, 0
    return [callback]


def require_batches(train: DataPass, validation: Mapping[str, DataPass]) -> None:
    """Raise ``DataError`` if training or validation data is known to have no batch."""
    sets = {f"validation{name and f' {name!r}'}": one for name, one in validation.items()}
    for name, data_pass in {"training": train, **sets}.items():
        if data_pass.num_batches == 0:
            raise DataError(
                f"the {name} data yields no batch: check that it is not empty, and that drop_last "
                f"does not leave out its only batch."
            )


def warn_of_untrained_loss(handler: BaseHandler) -> None:
    """Warn of parameters of the loss that no step changes, and of others that no file holds."""
    optimizer, modules = handler.optimizer, handler.parts.trained_modules
    if optimizer is None:
        return
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(parameter) for parameter in modules.loss_parameters() if parameter.requires_grad}
    if own - optimized:
        name = type(modules.loss).__name__
        warnings.warn(
            f"parameters of the loss {name} are not trained: pass params=lambda m: "
            f"[*m.parameters(), *loss.parameters()] to set_optimizer, or freeze them with "
            f"requires_grad_(False).",
            stacklevel=2,
        )
    if optimized - {id(parameter) for parameter in modules.parameters()}:
        warnings.warn(
            "the optimizer has parameters that belong neither to the model nor to a loss module, "
            "so no checkpoint holds them: make them part of the model, or pass the loss module "
            "itself to set_loss_fn.",
            stacklevel=2,
        )
