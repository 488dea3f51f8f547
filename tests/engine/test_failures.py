"""Errors and interrupts: every callback hears of them, and the first error is raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import fitkit
from fitkit import Callback, Event, Preempted
from fitkit.callbacks.lambda_callback import LambdaCallback


class BoomError(Exception):
    pass


IN_FIT = [
    Event.TRAIN_BEGIN,
    Event.EPOCH_BEGIN,
    Event.TRAIN_BATCH_BEGIN,
    Event.OPTIMIZER_STEP_BEGIN,
    Event.OPTIMIZER_STEP_END,
    Event.TRAIN_BATCH_END,
    Event.TEST_BEGIN,
    Event.TEST_BATCH_BEGIN,
    Event.TEST_BATCH_END,
    Event.TEST_END,
    Event.EPOCH_END,
]


class Raises(Callback):
    def __init__(self, event, error):
        def hook(*args):
            raise error

        setattr(self, event.value, hook)


def fit(handler, make_data, **options):
    kwargs = {"progress_bar": False, "batch_size": 2, "validation_data": make_data(4)}
    return handler.fit(make_data(4), **{**kwargs, **options})


@pytest.mark.parametrize("event", IN_FIT)
def test_an_error_in_a_hook_is_noted_and_heard_by_all(
    make_handler, make_data, make_recorder, event
):
    first, last = make_recorder(), make_recorder()
    handler = make_handler()
    with pytest.raises(BoomError) as caught:
        fit(handler, make_data, callbacks=[first, Raises(event, BoomError("here")), last])
    assert caught.value.__notes__ == [f"raised by callback 'Raises' in {event.value}"]
    for recorder in (first, last):
        assert recorder.heard[-2:] == ["exception", "train_end"]
        assert recorder.count(Event.EXCEPTION) == recorder.count(Event.TRAIN_END) == 1
    assert handler.module.training
    fit(handler, make_data)  # the handler is not left in the middle of anything
    assert len(handler.history.epoch) in (1, 2)


def test_an_error_at_the_very_end_is_raised_after_all_have_heard(
    make_handler, make_data, make_recorder
):
    last = make_recorder()
    with pytest.raises(BoomError) as caught:
        fit(make_handler(), make_data, callbacks=[Raises(Event.TRAIN_END, BoomError()), last])
    assert caught.value.__notes__ == ["raised by callback 'Raises' in on_train_end"]
    assert last.heard[-1] == "train_end"
    assert last.count(Event.EXCEPTION) == 0


def test_the_first_error_is_raised_with_the_later_ones_as_notes(make_handler, make_data, recorder):
    class Later(Callback):
        def on_exception(self, error):
            raise ValueError("second")

        def on_train_end(self, logs):
            raise OSError("third")

    with pytest.raises(BoomError) as caught:
        fit(
            make_handler(),
            make_data,
            callbacks=[Raises(Event.EPOCH_END, BoomError("first")), Later(), recorder],
        )
    # Python 3.10 has notes in the message, which the next lines then show
    assert [note.splitlines()[0] for note in caught.value.__notes__] == [
        "raised by callback 'Raises' in on_epoch_end",
        "then ValueError: second",
        "then OSError: third",
    ]
    assert recorder.heard[-2:] == ["exception", "train_end"]


@pytest.mark.parametrize("where", ["loss", "metric", "data", "model"])
def test_an_error_in_a_part_is_heard(make_handler, make_data, recorder, where):
    def fail(*args):
        raise BoomError(where)

    handler, data = make_handler(), make_data(4)
    if where == "loss":
        handler.set_loss_fn(fail)
    elif where == "metric":
        handler.add_metric("bad", fail)
    elif where == "data":
        data = (fail() for _ in range(3))
    else:
        handler.module.register_forward_pre_hook(fail)
    with pytest.raises(BoomError, match=where):
        handler.fit(data, progress_bar=False, callbacks=[recorder])
    assert recorder.heard[-2:] == ["exception", "train_end"]


def test_an_error_before_the_run_is_heard_by_nobody(make_handler, make_data, recorder):
    from fitkit import ConfigurationError

    handler = make_handler()
    with pytest.raises(ConfigurationError):
        fit(handler, make_data, callbacks=[recorder], precision="fp8")
    assert recorder.heard == []
    assert recorder not in handler.callbacks
    fit(handler, make_data, callbacks=[recorder])


def test_callbacks_of_the_call_are_detached_on_errors(make_handler, make_data, recorder):
    handler = make_handler()
    before = list(handler.callbacks)
    with pytest.raises(BoomError):
        fit(handler, make_data, callbacks=[recorder, Raises(Event.EPOCH_BEGIN, BoomError())])
    assert list(handler.callbacks) == before


def test_a_fit_inside_a_fit_is_refused(make_handler, make_data):
    handler = make_handler()
    again = LambdaCallback(on_epoch_end=lambda epoch, logs: fit(handler, make_data))
    with pytest.raises(ValueError, match="during a fit of the same handler"):
        fit(handler, make_data, callbacks=[again])


# ---- Ctrl-C and SIGTERM -------------------------------------------------------------------------


@pytest.mark.parametrize("event", IN_FIT)
def test_ctrl_c_in_a_hook_ends_fit_cleanly(make_handler, make_data, recorder, event):
    handler = make_handler()
    history = fit(
        handler, make_data, epochs=3, callbacks=[Raises(event, KeyboardInterrupt()), recorder]
    )
    assert history is handler.history
    assert history.interrupted
    assert recorder.heard[-2:] == ["exception", "train_end"]
    assert not fit(handler, make_data).interrupted


def test_what_fails_after_ctrl_c_is_not_swallowed(make_handler, make_data):
    """A save that failed is reported even after an interrupt."""
    interrupt = Raises(Event.TRAIN_BATCH_END, KeyboardInterrupt())
    with pytest.raises(OSError, match="disk full"):
        fit(
            make_handler(),
            make_data,
            callbacks=[interrupt, Raises(Event.TRAIN_END, OSError("disk full"))],
        )


@pytest.mark.parametrize("event", [Event.TRAIN_BATCH_BEGIN, Event.TEST_BATCH_BEGIN])
def test_a_real_ctrl_c_finishes_the_batch(make_handler, make_data, recorder, event):
    handler = make_handler()
    strike = LambdaCallback(**{event.value: lambda *args: os.kill(os.getpid(), signal.SIGINT)})
    assert fit(handler, make_data, epochs=3, callbacks=[strike, recorder]).interrupted
    ended = event.value.replace("begin", "end").removeprefix("on_")
    assert recorder.heard[-3:] == [f"{ended} 0", "exception", "train_end"]


def test_sigterm_finishes_the_batch_and_exits_with_143(make_handler, make_data, recorder):
    handler = make_handler()
    strike = LambdaCallback(
        on_train_batch_begin=lambda batch, logs: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Preempted) as caught:
        fit(handler, make_data, epochs=3, callbacks=[strike, recorder])
    assert isinstance(caught.value, SystemExit)
    assert caught.value.code == 143
    assert recorder.heard[-3:] == ["train_batch_end 0", "exception", "train_end"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_of_the_program_runs_and_is_put_back(make_handler, make_data, number):
    heard = []

    def own(received, frame):
        heard.append(received)

    outside = signal.signal(number, own)
    try:
        strike = LambdaCallback(on_train_batch_begin=lambda *args: os.kill(os.getpid(), number))
        if number == signal.SIGINT:
            fit(make_handler(), make_data, callbacks=[strike])
        else:
            with pytest.raises(Preempted):
                fit(make_handler(), make_data, callbacks=[strike])
        assert heard == [number]
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, outside)


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
import fitkit
from fitkit import Callback, ModelCheckpoint, NNHandler


class Slow(Callback):
    def on_train_batch_begin(self, batch, logs):
        if self.handler.state.global_step == 3:
            heard, wakes = os.pipe()
            os.set_blocking(wakes, False)
            signal.set_wakeup_fd(wakes)
            print("ready", flush=True)
            os.read(heard, 1)  # until the signal is here

    def on_train_end(self, logs):
        print("ended at", self.handler.state.global_step, flush=True)


handler = NNHandler(nn.Linear(2, 1), "cpu", model_type="regression", seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.01)
handler.set_loss_fn(nn.MSELoss())
if len(sys.argv) > 1:
    handler.auto_save(100, sys.argv[1])
    handler.add_callback(ModelCheckpoint(sys.argv[1] + "/{epoch}.pth", save_freq=10**9))
data = (torch.zeros(8, 2), torch.zeros(8, 1))
history = handler.fit(data, epochs=50_000, batch_size=4, progress_bar=False, callbacks=[Slow()])
print("interrupted", history.interrupted, flush=True)
"""


def strike(script, number, *arguments):
    """The script's exit code and output after a signal during training."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    return process.returncode, printed, errors


@pytest.mark.slow
def test_ctrl_c_in_a_program_returns_the_history():
    code, printed, errors = strike(SCRIPT, signal.SIGINT)
    assert (code, errors) == (0, "interrupted after 4 training batches\n")
    assert printed == "ended at 4\ninterrupted True\n"


def test_sigterm_in_a_program_saves_once_and_exits(tmp_path):
    code, printed, errors = strike(SCRIPT, signal.SIGTERM, str(tmp_path))
    assert (code, errors) == (143, "")
    assert printed == "ended at 4\n"
    assert [path.name for path in tmp_path.iterdir()] == ["preempted.pth"]
    state = torch.load(tmp_path / "preempted.pth", weights_only=True)
    assert state["progress"]["state"]["global_step"] == 4


@pytest.mark.filterwarnings("ignore:.*reduction over an empty.*")
def test_a_batch_without_samples_is_named():
    handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(lambda outputs, targets: (outputs - targets).sum())
    empty = [(torch.zeros(0, 2), torch.zeros(0, 1))]
    with pytest.raises(fitkit.DataError, match=r"holds no sample \(float32 \(0, 2\)"):
        handler.fit(empty, gradient_accumulation_steps=2, progress_bar=False)


class Breaks:
    """Batches of which the third cannot be loaded; before that a signal comes, or none."""

    def __init__(self, number, make_data):
        self.number = number
        self.inputs, self.targets = make_data(8)

    def __len__(self):
        return 4

    def __iter__(self):
        for index in range(4):
            if index == 2:
                if self.number is not None:
                    os.kill(os.getpid(), self.number)
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
            chosen = slice(2 * index, 2 * index + 2)
            yield self.inputs[chosen], self.targets[chosen]


@pytest.mark.parametrize("validates", [False, True])
def test_data_that_breaks_after_a_signal_is_the_end_that_was_announced(
    make_handler, make_data, tmp_path, validates
):
    saver = fitkit.ModelCheckpoint(tmp_path / "last.pth")
    data = Breaks(signal.SIGTERM, make_data)
    sets = (make_data(4), data) if validates else (data, None)
    handler = make_handler()
    with pytest.raises(Preempted):
        handler.fit(
            sets[0],
            validation_data=sets[1],
            callbacks=[saver],
            progress_bar=False,
            batch_size=2 if validates else None,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["preempted.pth"]
    assert (handler.state.batch, handler.state.phase.value) == (2, "test" if validates else "train")
    assert handler.state.mid_step is False


def test_data_that_breaks_without_a_signal_is_an_error(make_handler, make_data):
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        make_handler().fit(Breaks(None, make_data), progress_bar=False)


def test_ctrl_c_that_ends_what_loads_the_data_ends_as_ctrl_c(make_handler, make_data):
    history = make_handler().fit(Breaks(signal.SIGINT, make_data), progress_bar=False)
    assert history.interrupted
