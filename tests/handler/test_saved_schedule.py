"""Scheduler and optimizer after a restart: unchanged ones exactly, changed ones as the script says.

What is expected of a changed schedule is what a run has that had it all along.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.swa_utils import SWALR

from fitkit import Callback, ConfigurationError, NNHandler, ReduceLROnPlateau

DATA = (torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 1))
STEP = {"interval": "step"}


def by(cls, **arguments):
    return lambda handler: handler.set_scheduler(cls, **arguments)


def one_cycle(epochs, **more):
    return by(lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=4 * epochs, **STEP, **more)


def cosine(epochs):
    return by(lr_scheduler.CosineAnnealingLR, T_max=epochs)


def sequence(warm_up=2, gamma=0.5, **more):
    def set_it(handler):
        first = lr_scheduler.LinearLR(handler.optimizer, 0.1, total_iters=warm_up)
        second = lr_scheduler.ExponentialLR(handler.optimizer, gamma)
        handler.set_scheduler(
            lr_scheduler.SequentialLR, schedulers=[first, second], milestones=[warm_up], **more
        )

    return set_it


def chain(total_iters=3, gamma=0.9, **more):
    def set_it(handler):
        first = lr_scheduler.ConstantLR(handler.optimizer, total_iters=total_iters)
        second = lr_scheduler.ExponentialLR(handler.optimizer, gamma)
        handler.set_scheduler(lr_scheduler.ChainedScheduler, schedulers=[first, second], **more)

    return set_it


class Remembers(lr_scheduler.LRScheduler):
    """Its state gains a key at the first step."""

    def get_lr(self):
        return [group["lr"] * 0.9 for group in self.optimizer.param_groups]

    def step(self, epoch=None):
        super().step(epoch)
        if self.last_epoch > 0:
            self.highest = max(getattr(self, "highest", 0.0), self.get_last_lr()[0])


SCHEDULES = {
    "none": lambda handler: None,
    "steps": by(lr_scheduler.StepLR, step_size=2),
    "milestones": by(lr_scheduler.MultiStepLR, milestones=[1, 3]),
    "constant": by(lr_scheduler.ConstantLR, total_iters=3),
    "linear": by(lr_scheduler.LinearLR, total_iters=10, **STEP),
    "exponential": by(lr_scheduler.ExponentialLR, gamma=0.9),
    "polynomial": by(lr_scheduler.PolynomialLR, total_iters=10, power=2),
    "cosine": cosine(4),
    "restarts": by(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3, T_mult=2, **STEP),
    "one cycle": one_cycle(10),
    "cycles": by(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.2, step_size_up=5, **STEP),
    "function": by(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "product": by(lr_scheduler.MultiplicativeLR, lr_lambda=lambda epoch: 0.9),
    "plateau": by(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.9),
    "sequence": sequence(),
    "chain": chain(),
    "chain of steps": chain(**STEP),
    "averaging": by(SWALR, swa_lr=0.05),
    "own": by(Remembers),
}


def groups(module):
    return [{"params": [module.weight]}, {"params": [module.bias], "lr": 0.003}]


class Changes(Callback):
    """Keeps what the session says of optimizer and scheduler."""

    def on_train_begin(self, logs):
        self.found = list(self.handler.session.changes)


def run(folder, epochs, schedule, *callbacks, cls=SGD, params=None, **options):
    options = {"lr": 0.1, **({"momentum": 0.9} if cls is SGD else {}), **options}
    handler = NNHandler(nn.Linear, "cpu", in_features=4, out_features=1, seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(cls, params=params, **options)
    schedule(handler)
    handler.auto_save(1, folder, "{epoch:02d}")
    look = Changes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pass interval=.*")
        handler.fit(
            DATA, epochs=epochs, batch_size=4, progress_bar=False, resume=True,
            callbacks=[*callbacks, look],
        )  # fmt: skip
    return handler, look.found


def options_of(handler):
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in handler.optimizer.param_groups
    ]


@pytest.mark.parametrize("params", [groups, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", [AdamW, pytest.param(SGD, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_unchanged_schedule_goes_on_exactly(tmp_path, name, cls, params):
    schedule, how = SCHEDULES[name], {"cls": cls, "params": params}
    whole, _ = run(tmp_path / "whole", 4, schedule, **how)
    run(tmp_path / "parts", 2, schedule, **how)
    parts, changes = run(tmp_path / "parts", 4, schedule, **how)
    assert changes == []
    assert torch.equal(whole.module.weight, parts.module.weight)
    assert whole.history.history == parts.history.history
    assert options_of(whole) == options_of(parts)


CHANGED = {
    "longer cycle": (one_cycle(4), one_cycle(10), "OneCycleLR total_steps: 16 -> 40"),
    "other momentum": (
        one_cycle(10), one_cycle(10, max_momentum=0.99), "max_momentum: 0.95 -> 0.99"
    ),
    "longer cosine": (cosine(4), cosine(9), "CosineAnnealingLR T_max: 4 -> 9 (stepped to epoch 4)"),
    "sequence": (sequence(), sequence(3, 0.7), "schedulers.1.gamma: 0.5 -> 0.7"),
    "chain": (chain(), chain(5, 0.8), "schedulers.0.total_iters: 3 -> 5"),
    "another class": (sequence(), chain(), "scheduler: SequentialLR -> ChainedScheduler"),
    "from a chain": (chain(), sequence(), "scheduler: ChainedScheduler -> SequentialLR"),
    "from a plateau": (SCHEDULES["plateau"], cosine(9), "ReduceLROnPlateau -> CosineAnnealingLR"),
    "interval": (
        by(lr_scheduler.ExponentialLR, gamma=0.9),
        by(lr_scheduler.ExponentialLR, gamma=0.9, **STEP),
        "scheduler interval: 'epoch' -> 'step' (stepped to step 16)",
    ),
    "added": (SCHEDULES["none"], sequence(), "scheduler: none -> SequentialLR"),
    "removed": (cosine(9), SCHEDULES["none"], "scheduler: CosineAnnealingLR -> none"),
    "removed cycle": (one_cycle(9), SCHEDULES["none"], "scheduler: OneCycleLR -> none"),
    "function": (
        by(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 - epoch / 4),
        by(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 - epoch / 9),
        "scheduler LambdaLR: follows another function",
    ),
}  # fmt: skip


@pytest.mark.parametrize("params", [groups, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_schedule_is_brought_to_where_the_run_stands(tmp_path, case, params):
    before, after, sentence = CHANGED[case]
    whole, _ = run(tmp_path / "whole", 8, after, params=params)
    run(tmp_path / "parts", 4, before, params=params)
    parts, changes = run(tmp_path / "parts", 8, after, params=params)
    assert sentence in " ".join(changes)
    assert parts.history.history["lr"][4:] == whole.history.history["lr"][4:]
    assert options_of(parts) == options_of(whole)
    assert run(tmp_path / "parts", 9, after, params=params)[1] == []


@pytest.mark.parametrize("name", ["cosine", "sequence", "chain", "one cycle", "function", "none"])
def test_other_rates_of_the_optimizer_win_under_each_schedule(tmp_path, name):
    whole, _ = run(tmp_path / "whole", 6, SCHEDULES[name], lr=0.3, momentum=0.8)
    run(tmp_path / "parts", 4, SCHEDULES[name])
    parts, changes = run(tmp_path / "parts", 6, SCHEDULES[name], lr=0.3, momentum=0.8)
    assert changes[:2] == ["optimizer lr: 0.1 -> 0.3", "optimizer momentum: 0.9 -> 0.8"]
    assert parts.history.history["lr"][4:] == whole.history.history["lr"][4:]
    assert options_of(parts) == options_of(whole)
    assert parts.optimizer.state[parts.module.weight]["momentum_buffer"].any()


def test_a_plateau_takes_its_arguments_from_the_script_and_goes_on(tmp_path):
    def plateau(factor, **more):
        return by(lr_scheduler.ReduceLROnPlateau, patience=1, threshold=0.9, factor=factor, **more)

    before, _ = run(tmp_path, 4, plateau(0.5))
    saved = before.scheduler.state_dict()
    after, changes = run(tmp_path, 4, plateau(0.1))
    assert changes == ["scheduler ReduceLROnPlateau factor: 0.5 -> 0.1"]
    assert after.scheduler.factor == 0.1
    for key in ("best", "num_bad_epochs", "last_epoch"):
        assert after.scheduler.state_dict()[key] == saved[key]
    assert options_of(after) == options_of(before)
    other, _ = run(tmp_path, 4, plateau(0.1, mode="max"))
    assert other.scheduler.best == -float("inf")


def test_a_plateau_in_place_of_a_schedule_begins_at_the_rates_of_the_script(tmp_path):
    run(tmp_path, 4, cosine(9))
    after, changes = run(tmp_path, 4, SCHEDULES["plateau"])
    assert changes == ["scheduler: CosineAnnealingLR -> ReduceLROnPlateau"]
    assert options_of(after)[0]["lr"] == 0.1
    assert after.scheduler.num_bad_epochs == 0


def test_a_reduction_by_a_callback_keeps_its_proportion(tmp_path):
    def reduce():
        return ReduceLROnPlateau("loss", patience=1, min_delta=9.0)

    before, _ = run(tmp_path, 3, SCHEDULES["none"], reduce())
    proportion = options_of(before)[0]["lr"] / 0.1
    assert proportion < 0.5
    after, _ = run(tmp_path, 3, SCHEDULES["none"], reduce(), lr=1.0)
    assert options_of(after)[0]["lr"] == pytest.approx(proportion)


def test_a_schedule_shorter_than_the_run_is_one_error(tmp_path):
    run(tmp_path, 4, one_cycle(4))
    with pytest.raises(ConfigurationError, match=r"OneCycleLR cannot be brought to step 16"):
        run(tmp_path, 6, one_cycle(3))


def test_a_function_that_draws_counts_as_unchanged(tmp_path):
    drawn = by(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: float(torch.rand(())))
    run(tmp_path, 2, drawn)
    assert run(tmp_path, 3, drawn)[1] == []


AFTER_LOAD = ["cosine", "one cycle", "cycles", "sequence", "chain", "function", "plateau", "own"]


@pytest.mark.parametrize("name", AFTER_LOAD)
@pytest.mark.filterwarnings("ignore:.*could not be stored", "ignore:.*not attached")
def test_a_scheduler_that_is_set_after_a_load_has_the_rates_of_the_run(tmp_path, name):
    whole, _ = run(tmp_path / "whole", 6, SCHEDULES[name])
    saved, _ = run(tmp_path / "parts", 3, SCHEDULES[name])
    saved.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    SCHEDULES[name](loaded)
    loaded.fit(DATA, epochs=3, batch_size=4, progress_bar=False)
    assert loaded.history.history == whole.history.history
    assert options_of(loaded) == options_of(whole)


@pytest.mark.parametrize("after", [cosine(9), sequence(), one_cycle(10)])
@pytest.mark.filterwarnings("ignore:.*not attached")
def test_another_scheduler_that_is_set_after_a_load(tmp_path, after):
    whole, _ = run(tmp_path / "whole", 6, after)
    saved, _ = run(tmp_path / "parts", 3, cosine(3))
    saved.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    after(loaded)
    loaded.fit(DATA, epochs=3, batch_size=4, progress_bar=False)
    assert loaded.history.history["lr"][3:] == whole.history.history["lr"][3:]


@pytest.mark.filterwarnings("ignore:.*not attached")
def test_a_chain_cannot_take_the_place_of_another_schedule_after_a_load(tmp_path):
    saved, _ = run(tmp_path / "parts", 3, cosine(3))
    saved.save(tmp_path / "a.pth")
    with pytest.raises(ConfigurationError, match=r"ChainedScheduler was composed at the rates"):
        chain()(NNHandler.load(tmp_path / "a.pth"))


@pytest.mark.filterwarnings("ignore:.*not attached")
def test_skipping_the_scheduler_begins_a_new_one(tmp_path):
    saved, _ = run(tmp_path / "parts", 3, cosine(9))
    saved.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", skip_scheduler=True)
    cosine(3)(loaded)
    assert loaded.scheduler.last_epoch == 0
