"""Exact resume of everything that trains: losses with a state, lazy models, sparse gradients."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, ConfigurationError, NNHandler
from fitkit.testing import assert_resumes_exactly, differences

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
LABELS = (Y[:, 0] > 0).long()


# ---- loss modules -------------------------------------------------------------------------------


class Learned(nn.Module):
    """A learned temperature, a running mean, and a layer that drops out."""

    def __init__(self, size=2):
        super().__init__()
        self.head = nn.Linear(2, size)
        self.temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.ones(()))
        self.dropout = nn.Dropout(0.3)

    def forward(self, outputs, targets, epoch=0, weight=1.0):
        outputs = self.head(self.dropout(outputs)) * self.temperature.exp()
        loss = nn.functional.cross_entropy(outputs, targets)
        if self.training:
            self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
        return weight * loss / self.mean + 0.01 * epoch


def make_learned(loss=None, cls=torch.optim.AdamW, **options):
    torch.manual_seed(3)
    loss = Learned() if loss is None else loss
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=2)
    handler.set_optimizer(cls, lr=0.05, params=lambda m: [*m.parameters(), *loss.parameters()])
    handler.set_loss_fn(loss, **options)
    handler.set_train_loader((X, LABELS), batch_size=5)
    handler.set_val_loader((X[:6], LABELS[:6]), batch_size=3)
    return handler


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": 0.8},
        {"gradient_accumulation_steps": 2, "gradient_clipping_norm": 0.5},
        {"gradient_accumulation_steps": 3, "gradient_clipping_value": 0.1, "ema_decay": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("arguments", [{}, {"pass_epoch_to_loss": True, "weight": 2.0}], ids=str)
def test_a_loss_module_goes_on_exactly(options, arguments):
    def make():
        return make_learned(**arguments)

    assert len(assert_resumes_exactly(make, epochs=2, every=2, **options)) > 5


def test_the_parameters_of_the_loss_are_clipped_with_the_models():
    handler = make_learned(cls=torch.optim.SGD)
    norms = []

    class Look(fitkit.Callback):
        def on_optimizer_step_end(self, step, logs):
            parameters = [*handler.module.parameters(), *handler.parts.loss.function.parameters()]
            norms.append(nn.utils.get_total_norm([p.grad for p in parameters]))

    handler.fit(gradient_clipping_norm=0.01, callbacks=[Look()], progress_bar=False)
    torch.testing.assert_close(torch.stack(norms), torch.full((5,), 0.01), rtol=1e-3, atol=0)


def test_evaluation_puts_the_loss_into_evaluation_mode_and_averages_it():
    handler = make_learned()
    loss, seen = handler.parts.loss.function, []
    loss.dropout.eval()  # a mode of its own

    def look(module, arguments):
        seen.append((module.training, module.temperature.item()))

    handler.fit(ema_decay=0.5, progress_bar=False)
    loss.register_forward_pre_hook(look)
    trained = loss.temperature.item()
    handler.evaluate()
    averaged = handler.get_state_dict()["loss_ema_state_dict"]["weights"]["temperature"]
    assert float(averaged) != trained
    assert set(seen) == {(False, float(averaged))}
    assert (loss.training, loss.dropout.training, loss.temperature.item()) == (True, False, trained)


def test_a_loss_that_is_set_after_loading_gets_its_state(tmp_path):
    handler = make_learned()
    handler.fit(ema_decay=0.5, progress_bar=False)
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", skip_optimizer=True)
    loaded.save(tmp_path / "b.pth")  # a state that waits is not lost
    loaded = NNHandler.load(tmp_path / "b.pth", skip_optimizer=True)
    loss = Learned()
    loaded.set_loss_fn(loss)
    assert not list(differences(loss.state_dict(), handler.parts.loss.function.state_dict()))
    data = (X, LABELS)
    assert loaded.evaluate(data) == handler.evaluate(data)  # with the average of the loss


def test_a_loss_that_does_not_fit_is_one_error_and_changes_nothing(tmp_path):
    handler = make_learned()
    handler.fit(callbacks=[fitkit.ModelCheckpoint(tmp_path / "a.pth")], progress_bar=False)
    other = make_learned(Learned(size=3))
    before = other.get_state_dict()
    with pytest.raises(CheckpointError, match=r"do not fit Learned: 'head.weight' has shape"):
        other.fit(resume=tmp_path / "a.pth", progress_bar=False)
    assert not list(differences(other.get_state_dict(), before))
    loaded = NNHandler.load(tmp_path / "a.pth", skip_optimizer=True)
    with pytest.raises(CheckpointError, match="Set the loss as it was"):
        loaded.set_loss_fn(Learned(size=3))
    assert loaded.parts.loss is None
    loaded.set_loss_fn(nn.functional.cross_entropy)  # a function has no state
    assert loaded.get_state_dict()["loss_state_dict"] is None


@pytest.mark.parametrize(
    "loss",
    [nn.functional.cross_entropy, nn.CrossEntropyLoss(weight=torch.ones(2)), nn.Identity()],
    ids=["function", "of torch", "without state"],
)
def test_losses_without_a_state(loss):
    handler = NNHandler(nn.Linear(4, 2), "cpu")
    handler.set_loss_fn(loss)
    assert handler.get_state_dict()["loss_state_dict"] is None


def test_class_weights_are_those_of_the_script(tmp_path):
    make_learned(nn.CrossEntropyLoss(weight=torch.ones(2))).save(tmp_path / "a.pth")
    weight = torch.tensor([1.0, 5.0])
    handler = make_learned(nn.CrossEntropyLoss(weight=weight.clone()))
    handler.fit(resume=tmp_path / "a.pth", progress_bar=False)
    assert torch.equal(handler.parts.loss.function.weight, weight)


def test_a_loss_that_knows_the_model_saves_only_its_own(tmp_path):
    class Regularized(Learned):
        def __init__(self, model):
            super().__init__()
            self.model = model

    def make():
        torch.manual_seed(1)
        module = nn.Linear(4, 2)
        loss = Regularized(module)
        handler = NNHandler(module, "cpu", seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1, params=lambda m: list(loss.parameters()))
        handler.set_loss_fn(loss)
        handler.set_train_loader((X, LABELS), batch_size=5)
        return handler

    names = set(make().get_state_dict()["loss_state_dict"])
    assert names == set(Learned().state_dict())
    assert_resumes_exactly(make, epochs=2, every=3, gradient_accumulation_steps=2, ema_decay=0.5)


# ---- lazy models --------------------------------------------------------------------------------


class Lazy(nn.Module):
    """Parameters and buffers without values, and a layer that has them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.body(x))


def make_lazy(seed=0):
    handler = NNHandler(Lazy, "cpu", model_type="regression", seed=seed)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader((X, Y), batch_size=5)
    handler.set_val_loader((X[:6], Y[:6]), batch_size=3)
    return handler


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.8}, {"gradient_accumulation_steps": 2, "gradient_clipping_norm": 0.5}],
    ids=str,
)
def test_a_lazy_model_goes_on_exactly(options):
    def callbacks():
        best = fitkit.EarlyStopping("loss", patience=9, restore_best_weights=True)
        saver = fitkit.ModelCheckpoint("s/{global_step}.pth", max_overhead=0.9, background=True)
        return [best, saver]

    tried = assert_resumes_exactly(
        make_lazy,
        make_callbacks=callbacks,
        epochs=2,
        every=2,
        ignore=["*seconds*", "*s/*", "*lasting*"],  # the time decides when it saves
        **options,
    )
    assert len(tried) > 5


def test_a_lazy_model_saves_nothing_before_its_first_batch(tmp_path):
    handler = make_lazy()
    for save in (
        lambda: handler.save(tmp_path / "a.pth"),
        handler.get_state_dict,
        handler.weights.evaluated,
    ):
        with pytest.raises(CheckpointError, match=r"lazy parameters without values.*batch"):
            save()
    assert not list(tmp_path.iterdir())


TRIALS = {
    "find_learning_rate": lambda handler: handler.find_learning_rate(num_steps=6, ema_decay=0.5),
    "find_batch_size": lambda handler: handler.find_batch_size(max_size=4, num_steps=1),
    "fast_dev_run": lambda handler: handler.fit(fast_dev_run=2, ema_decay=0.5, progress_bar=False),
    "summary": lambda handler: handler.summary(),
    "repr": lambda handler: handler._repr_html_() + repr(handler),
    "failed resume": lambda handler: fail_to_resume(handler),
}


def fail_to_resume(handler):
    class Refuses(fitkit.Callback):
        def reset(self):
            raise ConfigurationError("on purpose")

    with pytest.raises(ConfigurationError, match="on purpose"):
        handler.fit(callbacks=[Refuses()], resume="nothing here", progress_bar=False)


@pytest.mark.parametrize("trial", TRIALS)
def test_a_trial_leaves_a_lazy_model_lazy(tmp_path, monkeypatch, trial):
    monkeypatch.chdir(tmp_path)
    tried, plain = make_lazy(), make_lazy()
    TRIALS[trial](tried)
    assert type(tried.module.body[0]) is nn.LazyLinear
    for handler in (tried, plain):
        handler.fit(epochs=2, progress_bar=False)
    assert not list(differences(tried.module.state_dict(), plain.module.state_dict()))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_files_are_loaded_into_lazy_models(tmp_path, ema):
    handler, path = make_lazy(), tmp_path / "a.pth"
    handler.fit(ema_decay=ema, progress_bar=False)
    handler.save(path)
    expected = handler.predict(X)
    assert torch.equal(NNHandler.load(path).predict(X), expected)
    weights = NNHandler.initialize_from_checkpoint(path, Lazy, model_type="regression")
    assert torch.equal(weights.predict(X), expected)


def test_a_lazy_model_may_be_evaluated_first():
    handler = make_lazy()
    handler.predict(X)
    handler.evaluate()
    handler.fit(ema_decay=0.5, progress_bar=False)
    assert handler.get_state_dict()["ema_state_dict"]["num_averaged"] == 5


# ---- gradients of a window ----------------------------------------------------------------------


class Sparse(nn.Module):
    """An embedding with sparse gradients, with a dense layer unless the optimizer takes none."""

    def __init__(self, *, has_dense=True):
        super().__init__()
        self.embedding = nn.Embedding(10, 3, sparse=True)
        self.head = nn.Linear(3, 1) if has_dense else None

    def forward(self, indices):
        found = self.embedding(indices).sum(1)
        return found.sum(1, keepdim=True) if self.head is None else self.head(found)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's Adagrad
@pytest.mark.parametrize("clip", [{}, {"norm": 0.1}, {"value": 0.01}], ids=str)
@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.1}),
        (torch.optim.SparseAdam, {"lr": 0.1}),
    ],
)
def test_sparse_gradients_come_back_sparse(optimizer, arguments, clip):
    def make():
        has_dense = optimizer is not torch.optim.SparseAdam
        handler = NNHandler(Sparse, "cpu", model_type="regression", seed=0, has_dense=has_dense)
        handler.set_optimizer(optimizer, **arguments)
        handler.set_loss_fn(nn.MSELoss())
        indices = torch.arange(48).reshape(24, 2) % 10
        handler.set_train_loader((indices, Y), batch_size=3)
        return handler

    clipping = {f"gradient_clipping_{name}": value for name, value in clip.items()}
    assert_resumes_exactly(make, epochs=2, every=3, gradient_accumulation_steps=3, **clipping)


# ---- learning rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_the_epochs_rate_is_that_of_its_last_step_also_after_a_resume(interval, is_tensor):
    def make():
        handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=1)
        lr = torch.tensor(1e-3) if is_tensor else 1e-3
        handler.set_optimizer(torch.optim.Adam, lr=lr)
        handler.set_loss_fn(nn.MSELoss())
        handler.set_scheduler(
            torch.optim.lr_scheduler.LambdaLR, interval=interval, lr_lambda=lambda n: n + 1.0
        )
        handler.set_train_loader((X, Y), batch_size=5)
        handler.set_val_loader((X[:6], Y[:6]), batch_size=3)
        return handler

    handler = make()
    used = []
    look = fitkit.LambdaCallback(
        on_optimizer_step_begin=lambda *_: used.append(
            float(handler.optimizer.param_groups[0]["lr"])
        )
    )
    history = handler.fit(epochs=2, callbacks=[look], progress_bar=False).history
    assert history["lr"] == pytest.approx([used[4], used[9]])
    assert list(history) == ["loss", "val_loss", "lr"]
    assert_resumes_exactly(make, epochs=2)


def test_a_rate_that_a_callback_sets_after_the_last_step_is_the_next_epochs():
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.01)
    handler.set_loss_fn(nn.MSELoss())

    def halve(batch, logs):
        handler.optimizer.param_groups[0]["lr"] /= 2

    halving = fitkit.LambdaCallback(on_train_batch_end=halve)
    history = handler.fit((X, Y), batch_size=12, epochs=2, callbacks=[halving], progress_bar=False)
    assert history.history["lr"] == [0.005, 0.00125]


# ---- interrupts with restore_best_weights -------------------------------------------------------


class Strikes(fitkit.Callback):
    """A signal or an error, at one step, in one hook."""

    order = -50

    def __init__(self, what, where):
        self.what, self.where = what, where

    def strike(self, hook):
        if self.where == (hook, self.handler.state.global_step):
            self.where = None
            if self.what == "error":
                raise RuntimeError("on purpose")
            os.kill(os.getpid(), getattr(signal, self.what))

    def on_train_batch_end(self, batch, logs):
        self.strike("train")

    def on_test_batch_end(self, batch, logs):
        self.strike("test")

    def on_epoch_end(self, epoch, logs):
        self.strike("end")


WHERE = [("train", 14), ("test", 15), ("end", 15)]


def fit_to_the_best(what=None, where=None, *, ema=0.0, **options):
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=1)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.Adam, lr=0.5)  # the last epoch is not the best
    handler.set_train_loader((X, Y), batch_size=8)
    handler.set_val_loader((X[:6], Y[:6]), batch_size=3)
    best = fitkit.EarlyStopping(patience=9, restore_best_weights=True)
    try:
        callbacks = [Strikes(what, where), best]
        handler.fit(epochs=6, callbacks=callbacks, progress_bar=False, ema_decay=ema, **options)
    except (RuntimeError, SystemExit):
        assert what in ("error", "SIGTERM")
    return handler, best


@pytest.mark.parametrize(
    ("what", "where"),
    [
        *((what, where) for what in ("SIGINT", "SIGTERM") for where in WHERE),
        *(("error", where) for where in WHERE[:2]),  # others would not hear the end of the epoch
    ],
    ids=str,
)
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_after_an_interrupt_the_model_is_the_best_and_the_file_goes_on(tmp_path, what, where, ema):
    whole, _ = fit_to_the_best(ema=ema)
    handler, best = fit_to_the_best(what, where, ema=ema)
    assert not list(differences(handler.weights.evaluated(), best.best_weights))
    state = handler.get_state_dict()
    trained = state["ema_state_dict"]["weights"] if ema else state["model_state_dict"]
    assert not torch.equal(trained["weight"], best.best_weights["weight"])
    handler.find_learning_rate(num_steps=5)  # a trial changes neither
    now = handler.get_state_dict()
    assert not list(differences(now["model_state_dict"], state["model_state_dict"]))
    assert not list(differences(handler.weights.evaluated(), best.best_weights))
    handler.save(tmp_path / "a.pth")
    again, _ = fit_to_the_best(ema=ema, resume=tmp_path / "a.pth")
    assert again.history.history == whole.history.history
    assert not list(differences(again.get_state_dict(), whole.get_state_dict()))


def test_a_run_that_ended_saves_its_best_weights():
    handler, best = fit_to_the_best()
    saved = handler.get_state_dict()["model_state_dict"]
    assert not list(differences(dict(saved), dict(best.best_weights)))


def test_a_new_fit_begins_with_the_best_weights():
    handler, best = fit_to_the_best("SIGINT", ("train", 14))
    seen = []
    look = fitkit.LambdaCallback(
        on_train_begin=lambda logs: seen.append(handler.get_state_dict()["model_state_dict"])
    )
    handler.fit(callbacks=[look], progress_bar=False)
    assert not list(differences(dict(seen[0]), dict(best.best_weights)))


# ---- modules that load themselves ---------------------------------------------------------------


class Before(nn.Module):
    """As it was when files were saved."""

    first = "old"

    def __init__(self, out=1):
        super().__init__()
        setattr(self, self.first, nn.Linear(4, 3))
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, out)

    def forward(self, x):
        return self.head(self.norm(getattr(self, self.first)(x)))


def rename(state, prefix):
    for name in [name for name in state if name.startswith(f"{prefix}old.")]:
        state[name.replace("old.", "new.", 1)] = state.pop(name)


class Overrides(Before):
    """Its layer has another name now."""

    first = "new"

    def _load_from_state_dict(self, state, prefix, *arguments):
        rename(state, prefix)
        super()._load_from_state_dict(state, prefix, *arguments)


class Hooked(Overrides):
    """The same by a hook."""

    _load_from_state_dict = nn.Module._load_from_state_dict

    def __init__(self, out=1):
        super().__init__(out)
        self.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *rest: rename(state, prefix)
        )


class Grows(nn.Module):
    """Keeps a value of each batch in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x):
        outputs = self.layer(x)
        if self.training:
            self.seen = torch.cat([self.seen, outputs.detach().mean()[None]])
        return outputs

    def _load_from_state_dict(self, state, prefix, *arguments):
        self.seen = torch.empty_like(state[f"{prefix}seen"])
        super()._load_from_state_dict(state, prefix, *arguments)


def make_versioned(model, **arguments):
    handler = NNHandler(model, "cpu", model_type="regression", seed=0, **arguments)
    handler.set_optimizer(torch.optim.Adam, lr=0.05)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader((X, Y), batch_size=8)
    return handler


@pytest.mark.parametrize("model", [Overrides, Hooked])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_model_that_renames_what_it_loads_goes_on_exactly(tmp_path, model, ema):
    def fit(handler, folder, epochs):
        savers = [fitkit.ModelCheckpoint(folder / "{global_step}.pth", save_freq=1)]
        handler.fit(
            epochs=epochs, callbacks=savers, ema_decay=ema, resume=folder, progress_bar=False
        )
        return handler

    whole = fit(make_versioned(Before), tmp_path / "whole", 2)
    fit(make_versioned(Before), tmp_path / "a", 1)
    again = fit(make_versioned(model), tmp_path / "a", 2)
    assert again.history.history == whole.history.history
    assert torch.equal(again.module.new.weight, whole.module.old.weight)
    loaded = NNHandler.initialize_from_checkpoint(tmp_path / "whole" / "6.pth", model)
    assert torch.equal(loaded.predict(X), whole.predict(X))


def test_a_model_that_resizes_what_it_loads_goes_on_exactly():
    assert_resumes_exactly(lambda: make_versioned(Grows), epochs=2)


@pytest.mark.parametrize("model", [Overrides, Hooked])
def test_what_a_model_cannot_load_itself_is_an_error_and_changes_nothing(tmp_path, model):
    path = tmp_path / "a.pth"
    make_versioned(Before).save(path)
    handler = make_versioned(model, out=2)
    before = {name: value.clone() for name, value in handler.module.state_dict().items()}
    for load in (
        lambda: handler.fit(resume=path, progress_bar=False),
        lambda: NNHandler.initialize_from_checkpoint(path, handler.module),
        lambda: NNHandler.load(path, model_class=handler.module),
    ):
        with pytest.raises(
            CheckpointError, match=rf"(?s)do not fit {model.__name__}: .*head.weight"
        ):
            load()
        assert not list(differences(before, dict(handler.module.state_dict())))
