"""Memory of an accelerator: a resume, a trial and a step take no more of it than they have to."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import fitkit
from fitkit import NNHandler
from fitkit.testing import differences

WIDTH = 256
X, Y = torch.randn(24, 8), torch.randint(3, (24,))


def make_handler(**options):
    torch.manual_seed(0)
    layers = [nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)]
    handler = NNHandler(nn.Sequential(*layers), "sim", seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=1e-3, foreach=False, **options)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader((X, Y), batch_size=4)
    handler.set_val_loader((X, Y), batch_size=8)
    return handler


def size_of_weights():
    return sum(one.nbytes for one in make_handler().module.parameters())


QUIET = {"progress_bar": False}


def peak_of(accelerator, work):
    """The most bytes of the device in use during ``work``, above what was there before."""
    gc.collect()
    before = accelerator.allocated
    accelerator.reset_peak()
    kept = work()
    peak = accelerator.peak - before
    del kept
    gc.collect()
    return peak


def stopping():
    return fitkit.EarlyStopping("val_loss", patience=5, restore_best_weights=True)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resume_takes_no_more_than_the_run(ema_decay, accelerator, tmp_path):
    path = tmp_path / "saved.pth"
    options = {**QUIET, "ema_decay": ema_decay}

    def fresh():
        handler = make_handler()
        handler.fit(epochs=2, callbacks=[stopping()], **options)
        handler.save(path)
        return handler

    def resumed():
        handler = make_handler()
        handler.fit(epochs=3, callbacks=[stopping()], resume=path, **options)
        return handler

    def loaded():
        model = make_handler().module.to("cpu")
        gc.collect()  # its values on the device
        handler = NNHandler.load(path, "sim", model_class=model)
        handler.set_train_loader((X, Y), batch_size=4)
        handler.fit(epochs=1, **options)
        return handler

    of_run = peak_of(accelerator, fresh)
    assert of_run > 3 * size_of_weights(), "weights, gradients and moments at least"
    assert peak_of(accelerator, resumed) <= 1.01 * of_run
    with pytest.warns(UserWarning, match="not attached: 'EarlyStopping'"):
        assert peak_of(accelerator, loaded) <= 1.01 * of_run


class Refuses(fitkit.Callback):
    state_fields = ("count",)
    count = 0

    def load_state_dict(self, state_dict):
        raise ValueError("I refuse")


class Large(fitkit.Callback):
    """Keeps a tensor on the device, in a way of its own."""

    def on_train_begin(self, logs):
        if not hasattr(self, "kept"):
            self.kept = torch.ones(1_000_000, device="sim")

    def state_dict(self):
        return {"kept": self.kept} if hasattr(self, "kept") else {}

    def load_state_dict(self, state):
        self.kept = state["kept"]


def test_what_a_callback_has_is_kept_on_the_host_while_a_resume_may_fail(accelerator, tmp_path):
    handler = make_handler()
    handler.add_callback(large := Large())
    handler.fit(epochs=1, **QUIET)
    handler.save(tmp_path / "saved.pth")
    before = large.kept
    peak = peak_of(accelerator, lambda: handler.callbacks.make_undo())
    assert peak < before.nbytes / 2
    with pytest.raises(fitkit.CheckpointError, match="I refuse"):
        handler.fit(callbacks=[Refuses()], resume=save_refused(tmp_path), **QUIET)
    assert large.kept.device.type == "sim"
    assert torch.equal(large.kept, before)


def save_refused(folder):
    handler = make_handler()
    handler.add_callback(Large())
    handler.fit(epochs=1, callbacks=[Refuses()], **QUIET)
    handler.save(folder / "refused.pth")
    return folder / "refused.pth"


def test_a_resume_that_fails_leaves_the_handler_as_it_was(accelerator, tmp_path):
    handler = make_handler()
    handler.fit(epochs=1, callbacks=[Refuses()], **QUIET)
    handler.save(tmp_path / "saved.pth")
    handler = make_handler()
    handler.fit(epochs=2, **QUIET)
    before = handler.get_state_dict()
    with pytest.raises(fitkit.CheckpointError, match="I refuse"):
        handler.fit(callbacks=[Refuses()], resume=tmp_path / "saved.pth", **QUIET)
    after = handler.get_state_dict()
    for key in ("model_state_dict", "optimizer_state_dict", "history"):
        assert not list(differences(before[key], after[key])), key
    handler.fit(epochs=1, **QUIET)


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"fast_dev_run": True, "ema_decay": 0.9}])
def test_a_trial_keeps_what_it_puts_back_on_the_host(options, accelerator):
    handler = make_handler()
    handler.fit(epochs=1, **QUIET)
    of_run = peak_of(accelerator, lambda: handler.fit(epochs=1, ema_decay=0.9, **QUIET))
    before = handler.get_state_dict()
    assert peak_of(accelerator, lambda: handler.fit(epochs=1, **QUIET, **options)) <= 1.05 * of_run
    assert not list(differences(before, handler.get_state_dict()))


class Watch(fitkit.Callback):
    """How much of the device is in use when a batch begins: nothing of the one before."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.seen = []

    def look(self):
        self.seen.append(self.accelerator.allocated)

    def on_train_batch_begin(self, batch, logs):
        self.look()

    def on_test_batch_begin(self, batch, logs):
        self.look()


class Wide(nn.Module):
    """Outputs much larger than weights and batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return (inputs.sum(1, keepdim=True) * self.weight).expand(-1, 100_000) + 1.0


@pytest.mark.parametrize("metrics", [[], [fitkit.MeanSquaredError(), fitkit.R2Score()]])
def test_outputs_do_not_live_through_the_next_forward(metrics, accelerator):
    handler = NNHandler(Wide, "sim", model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=1e-9)
    handler.set_loss_fn(lambda outputs, targets: outputs.mean())
    for number, metric in enumerate(metrics):
        handler.add_metric(str(number), metric)
    watch = Watch(accelerator)
    x, y = torch.randn(12, 4), torch.zeros(12, 100_000)
    handler.fit((x, y), batch_size=2, validation_data=(x, y), callbacks=[watch], **QUIET)
    first, *later = watch.seen
    assert max(later) - first < 100_000, "outputs of a batch take 800,000 bytes"


def test_memory_does_not_grow(accelerator):
    handler, marks = make_handler(), []

    class Mark(fitkit.Callback):
        def on_epoch_end(self, epoch, logs):
            gc.collect()
            marks.append(accelerator.allocated)

    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.fit(epochs=5, ema_decay=0.9, callbacks=[Mark(), stopping()], **QUIET)
    assert marks[1:] == marks[1:2] * 4


def test_best_weights_are_kept_on_the_host(accelerator):
    stopper = stopping()
    make_handler().fit(epochs=2, callbacks=[stopper], **QUIET)
    assert all(one.device.type == "cpu" for one in stopper.best_weights.values())


def test_pinned_memory_is_given_back(accelerator):
    noted = []

    class Note(fitkit.Callback):
        def on_train_end(self, logs):
            noted.append(accelerator.pinned_kept)

    make_handler().fit(epochs=1, callbacks=[Note()], **QUIET)
    assert noted[0] > 0
    assert accelerator.pinned_kept == 0
