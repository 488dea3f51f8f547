"""``fast_dev_run``, ``overfit_batches``, and what errors leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fitkit
from fitkit.runtime.rng import capture_streams
from fitkit.testing import assert_resumes_exactly

SIZE = 20


class Spy(nn.Module):
    """Records the first number of each sample, and the mode in which it came."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(1, 1), nn.Dropout(0.5)
        self.seen = {True: [], False: []}

    def forward(self, x):
        self.seen[self.training].append([int(value) for value in x[:, 0]])
        return self.drop(self.layer(x / SIZE))


ROWS = torch.arange(float(SIZE)).unsqueeze(1)
PAIR = (ROWS, ROWS)


class Rows(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return ROWS[index], ROWS[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows())


class Batches:
    def __iter__(self):
        return iter([(ROWS[i : i + 4], ROWS[i : i + 4]) for i in range(0, SIZE, 4)])


def make():
    handler = fitkit.NNHandler(Spy(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.01)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(data, handler=None, **options):
    handler = handler or make()
    history = handler.fit(data, progress_bar=False, **options)
    return handler.module.seen[True], handler.module.seen[False], history


# ---- fast_dev_run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "batches"), [(True, 1), (1, 1), (3, 3), (100, 5)])
def test_a_fast_dev_run_takes_so_many_batches_of_each(value, batches):
    options = {"epochs": 9, "validate_every": 4, "batch_size": 4, "validation_data": PAIR}
    trained, validated, history = fit(PAIR, fast_dev_run=value, **options)
    assert (len(trained), len(validated)) == (batches, batches)
    assert history.epoch == [0]
    assert "val_loss" in history.history


@pytest.mark.parametrize("off", [False, 0])
def test_it_can_be_off(off):
    assert len(fit(PAIR, fast_dev_run=off, batch_size=4)[0]) == 5


@pytest.mark.parametrize("wrong", [-1, 1.5, "yes", None])
def test_a_bad_number_of_batches(wrong):
    with pytest.raises(fitkit.ConfigurationError, match="fast_dev_run"):
        fit(PAIR, fast_dev_run=wrong)


def test_callbacks_of_the_handler_begin_anew_after_it():
    class Counts(fitkit.Callback):
        state_fields = ("batches",)
        batches = 0

        def on_train_batch_end(self, batch, logs):
            self.batches += 1

    handler = make()
    handler.add_callback(counter := Counts())
    fit(PAIR, handler, batch_size=4)
    fit(PAIR, handler, batch_size=4, fast_dev_run=2)
    assert counter.batches == 5
    fit(PAIR, handler, batch_size=4)
    assert counter.batches == 5  # of this call, as without the trial


# ---- overfit_batches ----------------------------------------------------------------------------

SOURCES = {
    "arrays": (PAIR, {"batch_size": 4}),
    "tensor data set": (TensorDataset(*PAIR), {"batch_size": 4}),
    "data set": (Rows(), {"batch_size": 4, "shuffle": True}),
    "shuffling loader": (DataLoader(Rows(), batch_size=4, shuffle=True), {}),
    "loader that draws": (
        DataLoader(Rows(), batch_size=4, sampler=torch.utils.data.RandomSampler(Rows())),
        {},
    ),
    "list of batches": (list(Batches()), {}),
    "iterable": (Batches(), {}),
    "stream": (Stream(), {"batch_size": 4}),
}
FIRST = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_first_batches_in_order_in_training_and_validation(kind):
    data, options = SOURCES[kind]
    trained, validated, _ = fit(
        data, epochs=3, overfit_batches=2, validation_data=(ROWS + 100, ROWS), **options
    )
    assert trained == validated == FIRST * 3


def test_where_there_is_no_validation_there_is_none():
    assert fit(PAIR, overfit_batches=2, batch_size=4)[:2] == (FIRST, [])


@pytest.mark.parametrize(
    ("share", "batches"), [(1.0, 5), (0.4, 2), (0.5, 2), (0.01, 1), (1, 1), (99, 5)]
)
def test_a_share_of_the_batches_or_their_number(share, batches):
    assert len(fit(PAIR, overfit_batches=share, batch_size=4)[0]) == batches


def test_other_limits_hold_too():
    options = {"overfit_batches": 3, "steps_per_epoch": 2, "validation_steps": 1, "batch_size": 4}
    trained, validated, _ = fit(PAIR, validation_data=PAIR, **options)
    assert (trained, validated) == (FIRST, FIRST[:1])


def test_a_share_of_what_has_no_length_is_refused():
    with pytest.raises(fitkit.ConfigurationError, match="pass their number"):
        fit(Batches(), overfit_batches=0.5)


def test_what_can_be_read_only_once_is_refused():
    with pytest.raises(fitkit.ConfigurationError, match="more than once"):
        fit(iter(Batches()), overfit_batches=1)


@pytest.mark.parametrize("wrong", [0, -1, True, 0.0, 1.5, "all"])
def test_a_bad_share(wrong):
    with pytest.raises(fitkit.ConfigurationError, match="overfit_batches"):
        fit(PAIR, overfit_batches=wrong)


def test_a_model_that_can_learn_them_does():
    torch.manual_seed(0)
    handler = fitkit.NNHandler(
        nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), "cpu", seed=0
    )
    handler.set_optimizer(torch.optim.Adam, lr=0.01)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    noise = (torch.randn(200, 4), torch.randint(2, (200,)))  # nothing but memory helps
    history = handler.fit(noise, epochs=150, overfit_batches=1, batch_size=8, progress_bar=False)
    assert history.train_losses[-1] < 0.05


def test_it_resumes_exactly():
    def make_handler():
        handler = make()
        handler.set_train_loader(DataLoader(Rows(), batch_size=4, shuffle=True))
        handler.set_val_loader(PAIR)
        return handler

    tried = assert_resumes_exactly(
        make_handler, epochs=2, overfit_batches=3, gradient_accumulation_steps=2
    )
    assert "on_test_batch_end, epoch 1, batch 2" in tried


def test_it_can_be_tried_out():
    trained, _, _ = fit(PAIR, overfit_batches=4, fast_dev_run=2, batch_size=4)
    assert trained == FIRST


# ---- errors -------------------------------------------------------------------------------------

HOOKS = ("on_train_begin", "on_epoch_begin", "on_train_batch_end", "on_test_end", "on_epoch_end")


class Fails(fitkit.Callback):
    """Raises in one hook; with ``spoils`` its state cannot be read afterwards."""

    def __init__(self, hook, error, *, spoils=False):
        self.error, self.spoils, self.is_spoiled = error, spoils, False
        setattr(self, hook, self.fail)

    def fail(self, *arguments):
        self.is_spoiled = self.spoils
        raise self.error

    def state_dict(self):
        if self.is_spoiled:
            raise OSError("the state is gone")
        return {}


@pytest.mark.parametrize("spoils", [False, True])
@pytest.mark.parametrize("hook", [*HOOKS, "on_train_end"])
def test_an_error_in_a_hook_leaves_all_whole(hook, spoils):
    handler, error = make(), ValueError("mine")
    streams = repr(capture_streams(handler.device))
    with pytest.raises(ValueError, match="mine") as caught:
        handler.fit(
            PAIR,
            callbacks=[Fails(hook, error, spoils=spoils), fitkit.EarlyStopping("loss", patience=9)],
            validation_data=PAIR, epochs=2, progress_bar=False,
        )  # fmt: skip
    assert caught.value is error
    assert repr(capture_streams(handler.device)) == streams
    assert [callback.name for callback in handler.callbacks] == ["history"]
    history = handler.fit(PAIR, validation_data=PAIR, epochs=2, progress_bar=False)
    assert len({len(values) for values in history.history.values()}) == 1


def test_an_error_while_the_run_is_read_at_its_end_does_not_stay(monkeypatch):
    handler = make()
    with monkeypatch.context() as patch:
        patch.setattr("fitkit.engine.run.FitRun.positions", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            handler.fit(PAIR, progress_bar=False)
    handler.fit(PAIR, epochs=1, progress_bar=False)
    assert handler.state.epoch == 2


class LogsOne(fitkit.Callback):
    def __init__(self, value):
        self.value = value

    def on_train_batch_end(self, batch, logs):
        self.log("score", self.value)


@pytest.mark.parametrize("value", [torch.ones(3), None, "0.5", {"a": 1}], ids=str)
def test_a_bad_value_to_log_is_refused_where_it_is_logged(value):
    handler = make()
    with pytest.raises(fitkit.ConfigurationError, match="'score' must be one number") as caught:
        handler.fit(PAIR, callbacks=[LogsOne(value)], progress_bar=False)
    assert caught.value.__notes__ == ["raised by callback 'LogsOne' in on_train_batch_end"]
    assert handler.state.logged == {}
    handler.fit(PAIR, callbacks=[LogsOne(torch.ones(1, 1))], progress_bar=False)
    assert handler.history.history["score"][-1] == 1.0


def test_a_state_that_can_never_be_saved_is_told_before_the_first_batch():
    class Word(str):
        pass

    class Keeps(fitkit.Callback):
        state_fields = ("word",)
        word = Word("a")

    handler = make()
    with pytest.raises(fitkit.CheckpointError, match=r"'Keeps' cannot be saved: state\['word'\]"):
        handler.fit(PAIR, callbacks=[Keeps()], progress_bar=False)
    assert handler.state.global_step == 0
    handler.fit(PAIR, progress_bar=False)
