"""The training loop: the order of events, when it ends, and its final state."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fitkit import Callback, DataError, Event
from fitkit.callbacks.lambda_callback import LambdaCallback


def fit(handler, data, **options):
    return handler.fit(
        data, **{"progress_bar": False, "batch_size": 2, "shuffle": False, **options}
    )


# ---- order --------------------------------------------------------------------------------------

TWO_EPOCHS = [
    "train_begin",
    "epoch_begin 0",
    "train_batch_begin 0",
    "train_batch_end 0",
    "train_batch_begin 1",
    "optimizer_step_begin 0",
    "optimizer_step_end 0",
    "train_batch_end 1",
    "train_batch_begin 2",
    "optimizer_step_begin 1",
    "optimizer_step_end 1",
    "train_batch_end 2",
    "epoch_end 0",
    "epoch_begin 1",
    "train_batch_begin 0",
    "train_batch_end 0",
    "train_batch_begin 1",
    "optimizer_step_begin 2",
    "optimizer_step_end 2",
    "train_batch_end 1",
    "train_batch_begin 2",
    "optimizer_step_begin 3",
    "optimizer_step_end 3",
    "train_batch_end 2",
    "test_begin",
    "test_batch_begin 0",
    "test_batch_end 0",
    "test_batch_begin 1",
    "test_batch_end 1",
    "test_end",
    "epoch_end 1",
    "train_end",
]


def test_events_come_in_the_documented_order(make_handler, make_data, recorder):
    fit(
        make_handler(),
        make_data(5),
        epochs=2,
        validation_data=make_data(3, seed=2),
        validate_every=2,
        gradient_accumulation_steps=2,
        callbacks=[recorder],
    )
    assert recorder.heard == TWO_EPOCHS


def test_a_loader_without_a_length_steps_on_its_short_window_after_its_last_batch(
    make_handler, make_data, recorder
):
    x, y = make_data(6)

    class Batches:
        def __iter__(self):
            return iter([(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)])

    make_handler().fit(
        Batches(), progress_bar=False, gradient_accumulation_steps=2, callbacks=[recorder]
    )
    assert recorder.heard[-6:] == [
        "train_batch_begin 2",
        "train_batch_end 2",
        "optimizer_step_begin 1",
        "optimizer_step_end 1",
        "epoch_end 0",
        "train_end",
    ]


def test_counters_have_moved_before_the_hooks_of_an_end(make_handler, make_data):
    seen = []

    class Look(Callback):
        def note(self, event):
            state = self.handler.state
            seen.append((event, state.epoch, state.batch, state.global_step, state.samples_seen))

        def on_train_batch_begin(self, batch, logs):
            self.note("begin")

        def on_train_batch_end(self, batch, logs):
            self.note("end")

        def on_epoch_end(self, epoch, logs):
            self.note("epoch")

    fit(make_handler(), make_data(3), epochs=2, callbacks=[Look()])
    assert seen == [
        ("begin", 0, 0, 0, 0),
        ("end", 0, 1, 1, 2),
        ("begin", 0, 1, 1, 2),
        ("end", 0, 2, 2, 3),
        ("epoch", 1, 0, 2, 3),
        ("begin", 1, 0, 2, 3),
        ("end", 1, 1, 3, 5),
        ("begin", 1, 1, 3, 5),
        ("end", 1, 2, 4, 6),
        ("epoch", 2, 0, 4, 6),
    ]


def test_a_second_fit_goes_on_with_epochs_and_history(make_handler, make_data, recorder):
    handler = make_handler()
    fit(handler, make_data(4), epochs=2)
    history = fit(handler, make_data(4), epochs=3, callbacks=[recorder])
    assert history is handler.history
    assert history.epoch == [0, 1, 2, 3, 4]
    assert [line for line in recorder.heard if line.startswith("epoch_begin")] == [
        "epoch_begin 2",
        "epoch_begin 3",
        "epoch_begin 4",
    ]


def test_no_epochs_train_nothing_but_begin_and_end(make_handler, make_data, recorder, weights):
    handler = make_handler()
    before = weights(handler)
    history = fit(handler, make_data(4), epochs=0, callbacks=[recorder])
    assert recorder.heard == ["train_begin", "train_end"]
    assert history.history == {}
    assert torch.equal(weights(handler), before)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_validation_comes_every_n_epochs_of_the_run(make_handler, make_data, every):
    handler = make_handler()
    validated = []
    watch = LambdaCallback(on_test_begin=lambda logs: validated.append(handler.state.epoch))
    for _ in range(2):  # counted over both calls
        fit(
            handler,
            make_data(2),
            epochs=3,
            validation_data=make_data(2),
            validate_every=every,
            callbacks=[watch],
        )
    assert validated == [epoch for epoch in range(6) if (epoch + 1) % every == 0]
    losses = handler.history.history.get("val_loss", [float("nan")] * 6)
    assert [loss == loss for loss in losses] == [(epoch + 1) % every == 0 for epoch in range(6)]


def test_logs_are_read_only_and_batch_logs_are_this_batch_s(make_handler, make_data):
    x, y = make_data(5)
    seen = []

    def look(batch, logs):
        with pytest.raises(TypeError):
            logs["loss"] = 0.0
        seen.append(logs["loss"])

    handler = make_handler(lr=1e-12)
    history = fit(handler, (x, y), callbacks=[LambdaCallback(on_train_batch_end=look)])
    model = handler.module
    expected = [nn.functional.mse_loss(model(x[i : i + 2]), y[i : i + 2]).item() for i in (0, 2, 4)]
    assert seen == pytest.approx(expected, rel=1e-9)
    whole = (2 * expected[0] + 2 * expected[1] + expected[2]) / 5
    assert history.history["loss"] == pytest.approx([whole], rel=1e-9)


def test_what_a_callback_logs_reaches_every_callback_whatever_the_order(make_handler, make_data):
    seen = []

    class Contributes(Callback):
        order = 90

        def on_epoch_begin(self, epoch, logs):
            self.log("answer", torch.tensor(42))

    look = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["answer"]))
    history = fit(make_handler(), make_data(2), epochs=2, callbacks=[look, Contributes()])
    assert seen == [42.0, 42.0] == history.history["answer"]


@pytest.mark.parametrize("name", ["loss", "lr", "epoch", "val_loss", "error", "val_error", "", 3])
def test_a_callback_cannot_log_under_a_name_that_is_taken(make_handler, make_data, name):
    class Clashes(Callback):
        def on_train_batch_end(self, batch, logs):
            self.log(name, 1.0)

    handler = make_handler()
    handler.add_metric("error", lambda outputs, targets: 0.0)
    with pytest.raises(ValueError, match="choose a non-empty name"):
        fit(handler, make_data(2), validation_data=make_data(2), callbacks=[Clashes()])


# ---- ends ---------------------------------------------------------------------------------------


class StopsAt(Callback):
    """Stops training in one hook, in one of the supported ways."""

    def __init__(self, event, way, epoch=0):
        def hook(*args):
            if self.handler.state.epoch >= epoch:
                self.ask(way)

        setattr(self, event.value, hook)

    def ask(self, way):
        if way == "handler":
            self.handler.stop_training = True
        elif way == "model":
            self.model.stop_training = True
        else:
            self.handler.state.stop("enough")


WAYS = ("handler", "model", "state")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("event", "steps", "epochs"),
    [
        (Event.TRAIN_BEGIN, 0, 0),
        (Event.EPOCH_BEGIN, 1, 1),
        (Event.TRAIN_BATCH_BEGIN, 1, 1),
        (Event.OPTIMIZER_STEP_BEGIN, 1, 1),
        (Event.OPTIMIZER_STEP_END, 1, 1),
        (Event.TRAIN_BATCH_END, 1, 1),
        (Event.TEST_BEGIN, 2, 1),
        (Event.TEST_BATCH_BEGIN, 2, 1),
        (Event.TEST_BATCH_END, 2, 1),
        (Event.TEST_END, 2, 1),
        (Event.EPOCH_END, 2, 1),
    ],
)
def test_a_stop_ends_the_batch_and_the_epoch(
    make_handler, make_data, recorder, event, steps, epochs, way
):
    handler = make_handler()
    history = fit(
        handler,
        make_data(4),
        epochs=5,
        validation_data=make_data(4),
        callbacks=[StopsAt(event, way), recorder],
    )
    assert handler.state.global_step == steps
    assert len(history.epoch) == epochs
    assert handler.stop_training
    assert handler.state.stop_reason
    assert recorder.heard[-1] == "train_end"
    assert recorder.count(Event.EPOCH_END) == epochs
    assert recorder.count(Event.TEST_END) == epochs  # an epoch that began is brought to its end
    assert all(value == value for value in history.history.get("loss", []))


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_is_forgotten_by_the_next_fit(make_handler, make_data, way):
    handler = make_handler()
    fit(handler, make_data(4), epochs=3, callbacks=[StopsAt(Event.TRAIN_BATCH_END, way)])
    assert handler.history.epoch == [0]
    fit(handler, make_data(4), epochs=2)
    assert handler.history.epoch == [0, 1, 2]
    assert not handler.stop_training


def test_a_stop_by_the_model_s_attribute_is_seen_by_callbacks_at_once(make_handler, make_data):
    seen = []
    late = LambdaCallback(on_epoch_end=lambda e, logs: seen.append(handler.stop_training))
    handler = make_handler()
    fit(
        handler,
        make_data(2),
        epochs=3,
        callbacks=[StopsAt(Event.EPOCH_END, "model", epoch=2), late],
    )
    assert seen == [False, True]


def test_a_stop_may_be_taken_back(make_handler, make_data):
    class Hesitates(Callback):
        def on_train_batch_begin(self, batch, logs):
            self.handler.stop_training = True

        def on_train_batch_end(self, batch, logs):
            self.handler.stop_training = False

    history = fit(make_handler(), make_data(4), epochs=2, callbacks=[Hesitates()])
    assert history.epoch == [0, 1]


@pytest.mark.parametrize(("limit", "epochs"), [(1, 1), (2, 1), (3, 2), (5, 3), (100, 4)])
def test_max_steps_counts_the_batches_of_this_call(make_handler, make_data, limit, epochs):
    handler = make_handler()
    fit(handler, make_data(4))
    fit(handler, make_data(4), epochs=4, max_steps=limit)
    assert handler.state.global_step == 2 + min(limit, 8)
    assert len(handler.history.epoch) == 1 + epochs


def test_max_steps_closes_the_open_window(make_handler, make_data, weights):
    handler = make_handler()
    before = weights(handler)
    fit(handler, make_data(8), max_steps=1, gradient_accumulation_steps=4)
    assert handler.state.optimizer_steps == 1
    assert not torch.equal(weights(handler), before)
    assert all(p.grad is None for p in handler.module.parameters())


def test_max_time_ends_training_and_says_so(make_handler, make_data):
    handler = make_handler()
    slow = LambdaCallback(on_train_batch_begin=lambda batch, logs: time.sleep(0.02))
    fit(handler, make_data(4), epochs=10_000, max_time=0.2, callbacks=[slow])
    assert 0 < handler.state.global_step <= 12
    assert "0.2 s" in handler.state.stop_reason


# ---- passes over the data -----------------------------------------------------------------------


def test_a_limited_pass_fetches_no_batch_in_vain(make_handler, make_data):
    x, y = make_data(2)
    fetched = []

    def endless():
        while True:
            fetched.append(len(fetched))
            yield x, y

    handler = make_handler()
    handler.fit(endless(), epochs=3, steps_per_epoch=4, progress_bar=False)
    assert fetched == list(range(12))
    assert handler.state.global_step == 12


def test_a_stop_fetches_no_batch_in_vain(make_handler, make_data):
    fetched = []

    def batches():
        for number in range(9):
            fetched.append(number)
            yield make_data(2)

    stop = StopsAt(Event.TRAIN_BATCH_END, "handler")
    make_handler().fit(batches(), epochs=2, progress_bar=False, callbacks=[stop])
    assert fetched == [0]


def test_steps_may_exceed_what_there_is(make_handler, make_data, recorder):
    fit(
        make_handler(),
        make_data(5),
        steps_per_epoch=50,
        validation_steps=50,
        validation_data=make_data(3),
        gradient_accumulation_steps=2,
        callbacks=[recorder],
    )
    assert recorder.count(Event.TRAIN_BATCH_END) == 3
    assert recorder.count(Event.TEST_BATCH_END) == 2
    assert recorder.count(Event.OPTIMIZER_STEP_END) == 2


def test_validation_steps_limit_each_validation(make_handler, make_data):
    x, y = make_data(6)
    handler = make_handler(lr=1e-12)
    history = fit(handler, make_data(2), validation_data=(x, y), validation_steps=2)
    expected = handler.evaluate((x[:4], y[:4]))["loss"]
    assert history.history["val_loss"] == pytest.approx([expected], rel=1e-9)


def test_a_generator_that_is_used_up_is_named_in_the_second_epoch(make_handler, make_data):
    batches = (make_data(2) for _ in range(3))
    handler = make_handler()
    with pytest.raises(DataError, match="generator is not used up"):
        handler.fit(batches, epochs=2, progress_bar=False)
    assert handler.history.epoch == [0]


@pytest.mark.parametrize(
    "empty",
    [
        lambda x, y: [],
        lambda x, y: iter(()),
        lambda x, y: (x[:0], y[:0]),
        lambda x, y: DataLoader(TensorDataset(x[:2], y[:2]), batch_size=4, drop_last=True),
    ],
    ids=["list", "iterator", "arrays", "drop_last"],
)
def test_data_that_yields_nothing_is_an_error(make_handler, make_data, empty):
    handler = make_handler()
    with pytest.raises(DataError, match="yields no batch: check that it is not empty"):
        handler.fit(empty(*make_data(4)), progress_bar=False)
    with pytest.raises(DataError, match="evaluation data yields no batch"):
        handler.evaluate(empty(*make_data(4)))
    with pytest.raises(DataError, match=r"yields no batch|data to predict yields no batch"):
        handler.fit(make_data(4), validation_data=empty(*make_data(4)), progress_bar=False)


def test_a_plain_loop_gives_the_same_bits(make_data):
    """The order of a loader with its own generator, dropout, momentum and a schedule."""
    from fitkit import NNHandler

    x, y = (part.float() for part in make_data(23))

    def build():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        generator = torch.Generator().manual_seed(11)
        loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=generator)
        return model, loader

    model, loader = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    torch.manual_seed(77)
    expected = []
    for _ in range(4):
        for inputs, targets in loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            expected.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()

    twin, loader = build()
    handler = NNHandler(twin, "cpu", model_type="regression")
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
    losses = []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    handler.get_state_dict()  # draws the seed of what has no generator, before the streams are set
    torch.manual_seed(77)
    handler.fit(loader, epochs=4, progress_bar=False, callbacks=[watch])
    assert losses == expected
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_memory_does_not_grow_with_the_epochs(make_handler, make_data):
    handler = make_handler(optimizer=torch.optim.Adam)
    handler.add_metric("error", lambda outputs, targets: (outputs - targets).abs().mean())
    counts = []

    class Count(Callback):
        def on_epoch_end(self, epoch, logs):
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    fit(
        handler,
        make_data(64),
        batch_size=1,
        epochs=5,
        validation_split=0.5,
        ema_decay=0.9,
        callbacks=[Count()],
    )
    assert max(counts[2:]) <= counts[1]


def test_an_evaluation_inside_a_hook_leaves_the_fit_as_it_was(make_handler, make_data, weights):
    results = []
    plain, curious = make_handler(), make_handler()
    look = LambdaCallback(
        on_train_batch_end=lambda b, logs: results.append(curious.evaluate(make_data(3))["loss"]),
        on_epoch_end=lambda e, logs: results.append(len(curious.predict(make_data(3)[0]))),
    )
    kwargs = {"epochs": 2, "validation_data": make_data(2), "ema_decay": 0.5}
    fit(plain, make_data(5), **kwargs)
    fit(curious, make_data(5), callbacks=[look], **kwargs)
    assert len(results) == 8
    assert torch.equal(weights(plain), weights(curious))
    assert plain.history.history == curious.history.history
    assert curious.module.training
