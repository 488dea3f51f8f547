"""A trial: which arguments of ``fit`` it takes, and what of the handler it hides and restores."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from fitkit import Callback, ConfigurationError, NNHandler
from fitkit.data.spec import DataSpec
from fitkit.testing import differences
from fitkit.tuning.trial import STEP_OPTIONS, run_trial, trial, trial_options

X, Y = torch.ones(8, 2), torch.zeros(8, 1)
SPEC = DataSpec((X, Y), 4)


class Counts(Callback):
    batches = 0

    def on_train_batch_end(self, batch, logs):
        self.batches += 1


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.Adam, lr=0.1)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader((X, Y))
    handler.set_val_loader((X, Y))
    handler.add_metric("mean", lambda outputs, targets: outputs.mean())
    handler.fit(progress_bar=False)
    return handler


def test_options_are_the_user_s_and_the_trial_s_own():
    options = trial_options({"gradient_clipping_norm": 2.0, "ema_decay": 0.5}, epochs=3)
    assert (options.gradient_clipping_norm, options.ema_decay, options.epochs) == (2.0, 0.5, 3)
    assert (options.progress_bar, options.callbacks) == (False, ())
    assert options.preemption_signals == (signal.SIGTERM,)
    assert trial_options({}, preemption_signals=()).preemption_signals == ()


def test_every_option_of_a_step_can_be_passed():
    given = {
        "precision": "bf16",
        "gradient_accumulation_steps": 2,
        "gradient_clipping_norm": 3.0,
        "gradient_clipping_value": 4.0,
        "ema_decay": 0.5,
        "compile": True,
    }
    assert set(given) == set(STEP_OPTIONS)
    options = vars(trial_options(given))
    assert {name: options[name] for name in given} == given
    with pytest.raises(ConfigurationError, match="gradient_clipping_norm must be a number above 0"):
        trial_options({"gradient_clipping_norm": -1.0})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("epochs", "epochs cannot be passed, as the trial sets it itself: .*'precision'"),
        ("callbacks", "as the trial sets it itself"),
        ("use_amp", "as fit has no such argument"),
        ("precison", "fit has no such argument.* Did you mean 'precision'?"),
    ],
)
def test_options_that_a_trial_does_not_take(name, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        trial_options({name: 1}, epochs=2)


def test_inside_there_is_only_what_a_step_needs(handler):
    handler.add_callback(Counts())
    before = handler.parts.scheduler, handler.parts.validation_data, list(handler.callbacks)
    with trial(handler, SPEC, "find"):
        parts = handler.parts
        assert list(handler.callbacks) == [handler.history]
        assert (parts.train_data, parts.validation_data) == (SPEC, {})
        assert (parts.scheduler, parts.metrics) == (None, {})
    after = handler.parts.scheduler, handler.parts.validation_data, list(handler.callbacks)
    assert after == before
    assert list(handler.parts.metrics) == ["mean"]


@pytest.mark.parametrize("error", [None, KeyError])
def test_the_handler_is_as_it_was(handler, error):
    handler.add_callback(counts := Counts())
    before = handler.get_state_dict()

    def use():
        with trial(handler, SPEC, "find"):
            run_trial(handler, trial_options({"ema_decay": 0.5}, epochs=2))
            assert list(differences(before, handler.get_state_dict()))
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert not list(differences(before, handler.get_state_dict()))
    assert counts.batches == 0


def test_each_trial_is_as_the_first(handler):
    losses = []
    handler.set_loss_fn(lambda outputs, targets: (outputs - torch.rand(())).square().mean())
    with trial(handler, SPEC, "find"):
        start = {name: value.clone() for name, value in handler.module.state_dict().items()}
        for _ in range(2):
            handler.module.load_state_dict(start)
            handler.set_optimizer(torch.optim.SGD, lr=0.1)
            run_trial(handler, trial_options({}, steps_per_epoch=1))
            losses.append(handler.train_losses[-1])
            assert handler.session.pending["progress"]["state"]["phase"] == "begin"
    assert losses[0] == losses[1]


def test_an_interrupt_ends_a_trial(handler):
    class Interrupted(nn.Module):
        def forward(self, outputs, targets):
            raise KeyboardInterrupt

    handler.set_loss_fn(Interrupted())
    with pytest.raises(KeyboardInterrupt), trial(handler, SPEC, "find"):
        run_trial(handler, trial_options({}))
    assert handler.parts.scheduler is not None


def test_an_iterator_can_be_read_only_once(handler):
    spec = DataSpec(iter([(X, Y)]))
    with pytest.raises(ConfigurationError, match="find reads the same batches more than once"):
        trial(handler, spec, "find").__enter__()


def test_during_a_fit(handler):
    class Tries(Callback):
        def on_epoch_begin(self, epoch, logs):
            with pytest.raises(ConfigurationError, match="find was called during a fit"):
                trial(self.handler, SPEC, "find").__enter__()
            self.tried = True

    handler.fit(callbacks=[tries := Tries()], progress_bar=False)
    assert tries.tried
