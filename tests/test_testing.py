"""``fitkit.testing`` finds the mistakes that authors of callbacks make."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import fitkit
from fitkit.testing import assert_resumes_exactly, differences

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fast_scratch")]


def make_handler():
    handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(torch.nn.MSELoss())
    handler.set_train_loader((torch.ones(6, 2), torch.ones(6, 1)), batch_size=2)
    return handler


class Forgets(fitkit.Callback):
    """Counts in an attribute that is not in its state."""

    def __init__(self, name):
        self.counted = name
        setattr(self, name, 0)

    def on_train_batch_end(self, batch, logs):
        setattr(self, self.counted, getattr(self, self.counted) + 1)


class ForgetsAFile(fitkit.Callback):
    """Writes lines of the whole run, but keeps only those of this process."""

    def on_train_begin(self, logs):
        self._lines = []

    def on_train_batch_end(self, batch, logs):
        self._lines.append(f"{batch}\n")
        Path("lines.txt").write_text("".join(self._lines))


class ChangesTraining(fitkit.Callback):
    """Its effect on the weights depends on something it forgets."""

    def on_train_begin(self, logs):
        self._first = True

    def on_optimizer_step_begin(self, step, logs):
        if self._first:
            self.model.weight.grad.zero_()
        self._first = False


@pytest.mark.parametrize("name", ["count", "_count"])
def test_a_forgotten_field_is_named_with_both_values(name):
    with pytest.raises(AssertionError) as error:
        assert_resumes_exactly(make_handler, make_callbacks=lambda: [Forgets(name)], epochs=1)
    assert str(error.value) == (
        "resumed at on_train_batch_end, epoch 0, batch 0: "
        f"['callbacks']['Forgets']['{name}'] is 2, uninterrupted 3"
    )


def test_a_forgotten_file_is_named():
    with pytest.raises(AssertionError, match=r"\['files'\]\['lines.txt'\] is b'1"):
        assert_resumes_exactly(
            make_handler, make_callbacks=lambda: [ForgetsAFile()], ignore=["*_lines*"], epochs=1
        )


def test_an_effect_on_the_weights_is_found():
    with pytest.raises(AssertionError, match=r"\['state'\]\['model_state_dict'\]\['weight'\]"):
        assert_resumes_exactly(make_handler, make_callbacks=lambda: [ChangesTraining()], epochs=1)


def test_what_is_ignored_may_differ():
    tried = assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: [Forgets("seconds")],
        ignore=["*seconds*"],
        epochs=1,
        every=2,
    )
    assert tried == [
        "on_epoch_begin, epoch 0",
        "on_train_batch_end, epoch 0, batch 1",
        "on_epoch_end, epoch 0",
    ]


def test_it_leaves_the_folder_and_the_streams_as_they_were(draw):
    folder = Path.cwd()
    torch.manual_seed(3)
    expected = draw()
    torch.manual_seed(3)
    assert_resumes_exactly(make_handler, epochs=1, every=9)
    assert Path.cwd() == folder
    assert draw()[2] == expected[2]


@pytest.mark.parametrize("name", ["callbacks", "resume", "progress_bar"])
def test_what_it_sets_itself_is_refused(name):
    with pytest.raises(fitkit.ConfigurationError, match=f"sets {name} itself"):
        assert_resumes_exactly(make_handler, **{name: None})


def test_a_run_of_nothing_is_refused():
    with pytest.raises(fitkit.ConfigurationError, match="no boundary"):
        assert_resumes_exactly(make_handler, epochs=0)


def test_differences_are_of_bits_types_and_places():
    nan, zero = float("nan"), torch.zeros(1)
    assert not list(differences({"a": [nan, zero]}, {"a": [nan, zero.clone()]}))
    pairs = [(zero, -zero), (zero, zero.double()), (1, 1.0), (1, True), (zero, torch.zeros(1, 1))]
    for first, second in pairs:
        assert list(differences(first, second))
    missing = list(differences({"a": {"b": 1}}, {"a": {}}))
    assert missing[0][:2] == ("['a']['b']", 1)


PREEMPTED = """
import os, signal, sys
import torch
import fitkit

heard = []
signal.signal(signal.SIGUSR1, lambda *arguments: heard.append("mine"))

class Preempt(fitkit.Callback):
    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == 2 and not resumed:
            os.kill(os.getpid(), signal.SIGUSR1)

resumed = os.path.exists("run/preempted.pth")
handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.MSELoss())
try:
    handler.fit(
        (torch.ones(6, 2), torch.ones(6, 1)), batch_size=2, epochs=2, progress_bar=False,
        callbacks=[fitkit.ModelCheckpoint("run/last.pth"), Preempt()], resume="run",
        preemption_signals=(signal.SIGTERM, signal.SIGUSR1),
    )
finally:
    signal.raise_signal(signal.SIGUSR1)
    print(heard, handler.state.global_step, sorted(os.listdir("run")))
"""


@pytest.mark.slow
def test_a_signal_that_was_asked_for_saves_and_ends_and_the_next_start_goes_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PREEMPTED))

    def start():
        return subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    first = start()
    assert first.returncode == 128 + signal.SIGUSR1, first.stderr
    assert first.stdout.strip() == "['mine', 'mine'] 2 ['preempted.pth']"
    second = start()
    assert second.returncode == os.EX_OK, second.stderr
    assert second.stdout.strip() == "['mine'] 6 ['last.pth']"


X, Y = torch.ones(6, 2), torch.ones(6, 1)


class Evaluates(fitkit.Callback):
    """Evaluates inside a hook, and keeps and logs the values."""

    state_fields = ("seen",)

    def __init__(self, hook, order):
        self.seen, self.order = [], order
        setattr(self, hook, self._evaluate)

    def _evaluate(self, *arguments):
        self.seen = [*self.seen, self.handler.evaluate((X, Y), batch_size=5)["loss"]]


class SavesInHook(fitkit.Callback):
    def __init__(self, order=0):
        self.order = order

    def on_epoch_end(self, epoch, logs):
        self.handler.save(f"mine_{epoch}.pth")


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 70])
@pytest.mark.parametrize(
    "hook", ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end"]
)
def test_a_callback_that_evaluates_in_a_hook_is_no_false_alarm(hook, order):
    assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: [Evaluates(hook, order), fitkit.ModelCheckpoint("last.pth")],
        validation_data=(X, Y),
        epochs=2,
    )


@pytest.mark.parametrize("order", [0, 70])
def test_a_callback_that_saves_in_a_hook_is_no_false_alarm(order):
    tried = assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: [SavesInHook(order), fitkit.ModelCheckpoint("last.pth")],
        epochs=2,
    )
    assert len(tried) == 10


class ForgetsWhatItEvaluated(Evaluates):
    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_one_that_forgets_what_it_evaluated_is_found(hook):
    with pytest.raises(AssertionError, match=r"\['ForgetsWhatItEvaluated'\]\['seen'\]"):
        assert_resumes_exactly(
            make_handler,
            make_callbacks=lambda: [ForgetsWhatItEvaluated(hook, 0), SavesInHook()],
            epochs=2,
        )
