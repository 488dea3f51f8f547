"""The arguments of ``fit`` that no other test covers: copies, defaults, and what they stand for."""

from __future__ import annotations

import inspect
import signal
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fitkit import EMA, Callback, ConfigurationError, NNHandler, ProgressBar, Timer
from fitkit.training.options import FitOptions


def test_the_defaults_are_those_of_fit():
    defaults = inspect.unwrap(NNHandler.fit).__kwdefaults__
    own = {name: field.default for name, field in FitOptions.__dataclass_fields__.items()}
    assert {**defaults, "train_data": None} == {**own, "use_amp": False}


def test_options_do_not_change():
    with pytest.raises(FrozenInstanceError):
        FitOptions().epochs = 3


def test_iterators_are_read_once_and_kept():
    one, two = Callback(), Callback()
    options = FitOptions(callbacks=iter([one, two]), preemption_signals=iter([signal.SIGUSR1]))
    assert options.callbacks == (one, two)
    assert options.preemption_signals == (signal.SIGUSR1,)
    assert FitOptions(callbacks=one).callbacks == (one,)


@pytest.mark.parametrize("number", [signal.SIGINT, 0, 99999, "SIGTERM", None])
def test_signals_that_end_no_process(number):
    with pytest.raises(ConfigurationError, match=r"preemption_signals must .*\.SIGUSR1, received"):
        FitOptions(preemption_signals=[number])


@given(value=st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=2)))
@example(1.0)
@example(1)
@example(True)
def test_a_share_or_a_count(value):
    fits = (type(value) is int and value >= 1) or (type(value) is float and 0 < value <= 1)
    if fits:
        assert FitOptions(overfit_batches=value).overfit_batches == value
    else:
        with pytest.raises(ConfigurationError, match="overfit_batches must be a number of batches"):
            FitOptions(overfit_batches=value)


@pytest.mark.parametrize("name", ["gradient_clipping_norm", "gradient_clipping_value"])
@given(value=st.one_of(st.none(), st.floats(), st.integers(), st.booleans()))
def test_clipping_is_positive_and_finite(name, value):
    if value is None or (type(value) is not bool and 0 < value < float("inf")):
        assert getattr(FitOptions(**{name: value}), name) == value
    else:
        with pytest.raises(ConfigurationError, match=f"{name} must be (a number above 0|finite)"):
            FitOptions(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "epochs",
        "validate_every",
        "gradient_accumulation_steps",
        "batch_size",
        "steps_per_epoch",
        "validation_steps",
        "max_steps",
        "fast_dev_run",
        "seed",
    ],
)
def test_counts_have_a_smallest_value(name):
    smallest = 0 if name in ("epochs", "fast_dev_run", "seed") else 1
    assert getattr(FitOptions(**{name: smallest}), name) == smallest
    with pytest.raises(ConfigurationError, match=f"{name} must be .* at least {smallest}"):
        FitOptions(**{name: smallest - 1})


@pytest.mark.parametrize(
    ("given", "expected"),
    [(False, None), (True, {}), ({}, {}), ({"fullgraph": True}, {"fullgraph": True})],
)
def test_options_of_compile(monkeypatch, given, expected):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert FitOptions(compile=given).compile_options == expected


@pytest.mark.parametrize(("value", "batches"), [(True, 1), (3, 3)])
def test_a_fast_dev_run_is_one_epoch_of_so_many_batches(value, batches):
    given = FitOptions(epochs=9, validate_every=4, fast_dev_run=value, steps_per_epoch=50, seed=2)
    options = given.for_fast_dev_run()
    assert (options.epochs, options.validate_every, options.seed) == (1, 1, 2)
    assert (options.steps_per_epoch, options.validation_steps) == (batches, batches)
    assert given.epochs == 9


def kinds(options, attached=()):
    return [type(callback) for callback in options.extra_callbacks(attached)]


def test_callbacks_that_arguments_stand_for():
    assert kinds(FitOptions(progress_bar=False)) == []
    assert kinds(FitOptions()) == [ProgressBar]
    full = FitOptions(ema_decay=0.5, max_time=5.0)
    assert kinds(full) == [EMA, Timer, ProgressBar]
    assert full.extra_callbacks(())[0].decay == 0.5


def test_a_callback_of_the_kind_that_is_attached_is_enough():
    class MyBar(ProgressBar):
        pass

    attached = [MyBar(), EMA(0.9), Timer(5.0)]
    assert kinds(FitOptions(ema_decay=0.5, max_time=5.0), attached) == [Timer]


def test_arguments_of_the_loader():
    assert FitOptions().loader_kwargs() == {}
    options = FitOptions(drop_last=False, collate_fn=list)
    assert options.loader_kwargs() == {"drop_last": False, "collate_fn": list}
    for value in (1, "yes"):
        with pytest.raises(ConfigurationError, match="drop_last must be True, False or None, rec"):
            FitOptions(drop_last=value)
    with pytest.raises(ConfigurationError, match=r"collate_fn must be a function .* received 3"):
        FitOptions(collate_fn=3)
