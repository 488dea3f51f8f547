"""Event: the moments at which hooks of callbacks are called."""

from __future__ import annotations

from enum import Enum


class Event(str, Enum):
    """The moments at which hooks are called. Each value is the name of the hook.

    ::

        fit
        ├─ on_train_begin
        │  ├─ on_epoch_begin
        │  │  ├─ on_train_batch_begin
        │  │  │    forward, loss, backward
        │  │  │    ├─ on_optimizer_step_begin     when the accumulation window is full
        │  │  │    │    clip, step, schedule
        │  │  │    └─ on_optimizer_step_end
        │  │  ├─ on_train_batch_end
        │  │  ├─ on_test_begin                    when validation is due
        │  │  │  ├─ on_test_batch_begin
        │  │  │  └─ on_test_batch_end
        │  │  ├─ on_test_end
        │  ├─ on_epoch_end
        │  └─ on_checkpoint_saved                 after any event that requested a save
        ├─ on_exception                           only if an exception was raised
        └─ on_train_end
    """

    TRAIN_BEGIN = "on_train_begin"
    EPOCH_BEGIN = "on_epoch_begin"
    TRAIN_BATCH_BEGIN = "on_train_batch_begin"
    OPTIMIZER_STEP_BEGIN = "on_optimizer_step_begin"
    OPTIMIZER_STEP_END = "on_optimizer_step_end"
    TRAIN_BATCH_END = "on_train_batch_end"
    TEST_BEGIN = "on_test_begin"
    TEST_BATCH_BEGIN = "on_test_batch_begin"
    TEST_BATCH_END = "on_test_batch_end"
    TEST_END = "on_test_end"
    EPOCH_END = "on_epoch_end"
    CHECKPOINT_SAVED = "on_checkpoint_saved"
    EXCEPTION = "on_exception"
    TRAIN_END = "on_train_end"
    PREDICT_BEGIN = "on_predict_begin"
    PREDICT_BATCH_BEGIN = "on_predict_batch_begin"
    PREDICT_OUTPUTS = "on_predict_outputs"
    PREDICT_BATCH_END = "on_predict_batch_end"
    PREDICT_END = "on_predict_end"
