"""A captured step has the results of one that is not, bit for bit, whatever happens around it."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import fitkit
from fitkit import Callback, NNHandler
from fitkit.core.errors import ConfigurationError
from fitkit.engine.capture import MOST_RECORDINGS, WARM_UP, why_not_recorded
from fitkit.testing import assert_resumes_exactly, differences

EPOCHS, FULL = 2, 10  # full batches per epoch; each epoch ends with a short one
BATCHES = EPOCHS * (FULL + 1)
MOMENTUM = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})


def samples(size=4 * FULL + 2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 4, generator=generator)
    return x, torch.randint(3, (size,), generator=generator)


def layers():
    return [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)]


def make(optimizer=MOMENTUM, model=None, loss=None):
    torch.manual_seed(0)
    handler = NNHandler(nn.Sequential(*layers()) if model is None else model(), "cpu", seed=1)
    handler.set_optimizer(optimizer[0], **optimizer[1])
    handler.set_loss_fn(nn.CrossEntropyLoss() if loss is None else loss)
    handler.add_metric("accuracy", fitkit.Accuracy())
    return handler


def fit(handler, data=None, **options):
    settings = {"batch_size": 4, "epochs": EPOCHS, "progress_bar": False}
    if isinstance(data, (list, DataLoader)):
        del settings["batch_size"]
    return handler.fit(samples() if data is None else data, **{**settings, **options})


def pair(make_one=make, callbacks=list, **options):
    """A handler trained as usual, and one trained with captured steps."""
    trained = []
    for capture in (False, True):
        handler = make_one()
        fit(handler, callbacks=callbacks(), capture=capture, **options)
        trained.append(handler)
    return trained


def same(usual, captured):
    assert list(differences(usual.get_state_dict(), captured.get_state_dict())) == []
    return True


# ---- equality -----------------------------------------------------------------------------------

ADAM = (torch.optim.Adam, {"lr": 0.01})
CASES = {
    "plain": {},
    "everything": {
        "gradient_clipping_norm": 0.5,
        "gradient_clipping_value": 0.1,
        "ema_decay": 0.9,
        "precision": "bf16",
    },
    "windows": {"gradient_accumulation_steps": 3, "ema_decay": 0.9},
    "windows with a loss scaler": {"gradient_accumulation_steps": 4, "precision": "fp16"},
    "loss scaler": {"precision": "fp16", "gradient_clipping_norm": 1.0},
}


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["SGD", "Adam"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_captured_step_is_the_usual_one_bit_for_bit(graphs, options, optimizer):
    usual, captured = pair(lambda: make(optimizer), validation_data=samples(6), **options)
    assert same(usual, captured)
    assert graphs.replayed + graphs.as_usual == BATCHES
    assert graphs.replayed > 12
    assert graphs.recorded == (2 if "gradient_accumulation_steps" in options else 1)


def test_the_odd_last_batch_runs_as_usual(graphs):
    fit(make(), capture=True)
    # the optimizer has no state before the first step, which is therefore not one of a row
    assert graphs.as_usual == 1 + WARM_UP + EPOCHS


def test_batches_of_changing_length_run_as_usual(graphs):
    data = [tuple(part[: 2 + i % 3] for part in samples()) for i in range(12)]
    usual, captured = pair(data=data)
    assert same(usual, captured)
    assert (graphs.recorded, graphs.as_usual) == (0, 24)


def test_batches_that_are_mappings(graphs):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, first, second):
            return self.layer(first + second)

    x, y = samples()
    usual, captured = pair(
        lambda: make(model=Named), data={"first": x, "second": x.flip(0), "labels": y}
    )
    assert same(usual, captured)
    assert graphs.replayed


def test_a_batch_that_holds_more_than_tensors_runs_as_usual(graphs):
    class Lenient(nn.Linear):
        def forward(self, x, names):
            assert names == ["a", "b"]
            return super().forward(x)

    x, y = samples()
    data = [((x[i : i + 4], ["a", "b"]), y[i : i + 4]) for i in range(0, 40, 4)]
    usual, captured = pair(lambda: make(model=lambda: Lenient(4, 3)), data=data)
    assert same(usual, captured)
    assert not graphs.recorded


def test_one_tensor_twice_in_a_batch_stays_one(graphs):
    class InPlace(nn.Linear):
        def forward(self, x, again):
            x.add_(1)
            return super().forward(again)

    x, y = samples()
    data = [((part, part), label) for part, label in zip(x.split(4), y.split(4), strict=True)]

    def fresh():
        return [((one, one), label) for (part, _), label in data for one in [part.clone()]]

    usual, captured = make(model=lambda: InPlace(4, 3)), make(model=lambda: InPlace(4, 3))
    fit(usual, fresh())
    fit(captured, fresh(), capture=True)
    assert same(usual, captured)


def test_values_that_are_kept_are_those_of_their_batch(graphs):
    class Keeping(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, batch, logs):
            self.losses.append(logs.raw("loss"))

    class Outputs:  # accumulates by itself, as metrics of torchmetrics do
        def __init__(self):
            self.reset()

        def reset(self):
            self.kept = []

        def update(self, outputs, targets):
            self.kept.append((outputs, targets))

        def compute(self):
            return torch.stack([o.sum() + t.sum() for o, t in self.kept]).std()

    found = []
    for capture in (False, True):
        handler, keeping = make(), Keeping()
        handler.add_metric("spread", Outputs())
        fit(handler, callbacks=[keeping], capture=capture)
        found.append((handler.history.history, torch.stack(keeping.losses)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert len(found[0][1].unique()) == BATCHES


def test_a_second_fit(graphs):
    usual, captured = make(), make()
    for handler, capture in ((usual, False), (captured, True)):
        fit(handler, capture=capture)
        fit(handler, capture=capture, gradient_accumulation_steps=2)
    assert same(usual, captured)
    assert all(one.grad is None for one in captured.module.parameters())


# ---- callbacks ----------------------------------------------------------------------------------


class AtEach(Callback):
    """Does something at one event."""

    def __init__(self, event, act):
        self.seen = []
        setattr(self, event, lambda *args: act(self, *args))


def norm(callback, *_):
    grads = [one.grad for one in callback.model.parameters()]
    callback.seen.append(torch.stack([one.norm() for one in grads]).norm().item())


def halve(callback, *_):
    for one in callback.model.parameters():
        one.grad.mul_(0.5)


def clamp(callback, *_):
    with torch.no_grad():
        for one in callback.model.parameters():
            one.clamp_(-0.3, 0.3)


def set_lr(callback, batch, *_):
    callback.handler.optimizer.param_groups[0]["lr"] = 0.01 * (1 + batch % 4)


def at_epoch_1(act):
    def _act(callback, number, *_):
        if callback.handler.state.epoch == 1 and number in (1, 6):
            act(callback)

    return _act


def freeze(callback):
    callback.model[0].requires_grad_(not callback.model[0].weight.requires_grad)


def evaluation_mode(callback):
    callback.model[1].train(not callback.model[1].training)


def replace_memory(callback):
    callback.model[0].weight.data = callback.model[0].weight.data.clone() * 0.5


def forget_momentum(callback):
    callback.handler.optimizer.state.clear()


def load_optimizer(callback):
    optimizer = callback.handler.optimizer
    optimizer.load_state_dict(optimizer.state_dict())


def leave_gradients(callback):
    for one in callback.model.parameters():
        one.grad = torch.ones_like(one)


def other_accumulation(callback):
    callback.handler.gradient_accumulation_steps = 2


CALLBACKS = {
    "gradients are read": ("on_optimizer_step_begin", norm),
    "gradients are changed": ("on_optimizer_step_begin", halve),
    "gradients are read after the step": ("on_optimizer_step_end", norm),
    "weights are changed after the step": ("on_optimizer_step_end", clamp),
    "lr by batch": ("on_train_batch_begin", set_lr),
    "frozen": ("on_train_batch_begin", at_epoch_1(freeze)),
    "evaluation mode": ("on_train_batch_begin", at_epoch_1(evaluation_mode)),
    "memory": ("on_train_batch_end", at_epoch_1(replace_memory)),
    "momentum": ("on_train_batch_end", at_epoch_1(forget_momentum)),
    "optimizer loaded": ("on_train_batch_end", at_epoch_1(load_optimizer)),
    "gradients left": ("on_train_batch_end", at_epoch_1(leave_gradients)),
    "window": ("on_epoch_end", lambda callback, *_: other_accumulation(callback)),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("event", "act"), CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_work_as_ever(graphs, event, act, size):
    made = []

    def callbacks():
        made.append(AtEach(event, act))
        return [made[-1]]

    options = {"ema_decay": 0.9, "gradient_clipping_norm": 0.5, "gradient_accumulation_steps": size}
    usual, captured = pair(callbacks=callbacks, **options)
    assert same(usual, captured)
    assert made[0].seen == made[1].seen
    assert graphs.replayed > 3


def test_terminating_on_nan(graphs):
    x, y = samples()
    x[30] = float("nan")
    usual, captured = pair(data=(x, y), shuffle=False, callbacks=lambda: [fitkit.TerminateOnNaN()])
    assert same(usual, captured)
    assert captured.state.stopped_non_finite
    assert graphs.replayed


@pytest.mark.parametrize(("interval", "replayed"), [("epoch", 13), ("step", 15)])
def test_schedules(graphs, interval, replayed):
    def scheduled():
        handler = make()
        handler.set_scheduler(StepLR, interval=interval, step_size=1, gamma=0.9)
        return handler

    assert same(*pair(scheduled))
    assert graphs.replayed == replayed


class Hooked(Callback):
    """Registers hooks on parts of the run for some batches of the second epoch."""

    def __init__(self, register):
        self.register, self.calls, self.handle = register, 0, None

    def count(self, *args):
        self.calls += 1

    def on_train_batch_begin(self, batch, logs):
        if self.handler.state.epoch == 1 and batch == 2:
            self.handle = self.register(self)

    def on_train_batch_end(self, batch, logs):
        if batch == 7 and self.handle is not None:
            self.handle.remove()


HOOKS = {
    "forward": lambda callback: callback.model[0].register_forward_hook(callback.count),
    "before forward": lambda callback: callback.model[0].register_forward_pre_hook(callback.count),
    "backward": lambda callback: callback.model[4].register_full_backward_hook(callback.count),
    "gradient": lambda callback: callback.model[0].weight.register_hook(callback.count),
    "accumulated": lambda callback: callback.model[0].weight.register_post_accumulate_grad_hook(
        callback.count
    ),
    "optimizer": lambda callback: callback.handler.optimizer.register_step_post_hook(
        callback.count
    ),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_are_called(graphs, register):
    hooked = []

    def callbacks():
        hooked.append(Hooked(register))
        return [hooked[-1]]

    assert same(*pair(callbacks=callbacks))
    assert hooked[0].calls == hooked[1].calls >= 6
    assert graphs.replayed


def test_a_loss_that_depends_on_the_epoch(graphs):
    def loss(outputs, targets, epoch):
        return nn.functional.cross_entropy(outputs, targets) * (epoch + 1)

    def depending():
        handler = make()
        handler.set_loss_fn(loss, pass_epoch_to_loss=True)
        return handler

    assert same(*pair(depending))
    assert graphs.recorded == EPOCHS


def test_recordings_are_not_piled_up(graphs):
    x, y = samples()
    forms = [tuple(part[: 2 + i // 5] for part in (x, y)) for i in range(5 * MOST_RECORDINGS + 5)]
    usual, captured = pair(data=forms, epochs=1)
    assert same(usual, captured)
    assert graphs.recorded > MOST_RECORDINGS


# ---- resuming -----------------------------------------------------------------------------------


def resumed_handler():
    handler = make()
    handler.set_train_loader(torch.utils.data.TensorDataset(*samples(30)), batch_size=4)
    handler.set_val_loader(torch.utils.data.TensorDataset(*samples(6)), batch_size=4)
    handler.set_scheduler(StepLR, step_size=1, gamma=0.9)
    return handler


@pytest.mark.usefixtures("fast_scratch")
@pytest.mark.parametrize(
    "options",
    [{"gradient_clipping_norm": 0.5}, {"gradient_accumulation_steps": 3, "precision": "fp16"}],
    ids=["whole", "windows"],
)
def test_a_captured_run_resumes_exactly_at_every_boundary(graphs, options):
    tried = assert_resumes_exactly(
        resumed_handler, epochs=2, ema_decay=0.8, capture=True, **options
    )
    assert len(tried) > 15
    assert graphs.recorded > 5


def test_a_run_may_be_captured_from_a_resume_on(graphs, tmp_path):
    options = {"epochs": 2, "progress_bar": False, "ema_decay": 0.8}

    def saver():
        return fitkit.ModelCheckpoint(tmp_path / "{global_step}.pth", save_freq=5)

    whole, resumed = resumed_handler(), resumed_handler()
    whole.fit(callbacks=[saver()], **options)
    resumed.fit(callbacks=[saver()], resume=tmp_path / "5.pth", capture=True, **options)
    assert graphs.replayed
    weights = [handler.module.state_dict() for handler in (whole, resumed)]
    assert list(differences(*weights)) == []


# ---- what cannot be captured, and who is told ---------------------------------------------------


def test_without_cuda_it_is_one_sentence():
    with pytest.raises(ConfigurationError, match="this handler is on 'cpu': leave capture out"):
        fit(make(), capture=True)


def test_a_custom_step_cannot_be_captured(graphs):
    handler = make()
    handler.set_train_step(lambda handler, batch: handler.model(batch[0]).sum())
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        fit(handler, capture=True)


def test_several_processes_cannot_be_captured(graphs, monkeypatch):
    handler = make()
    monkeypatch.setattr(type(handler.world), "size", 2)
    with pytest.raises(ConfigurationError, match="capture=True is for one process"):
        fitkit.capturing.capture_of(handler)


def test_a_model_that_reads_says_where(graphs):
    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)

    with pytest.raises(RuntimeError, match="not permitted") as caught:
        fit(make(model=lambda: Reads(4, 3)), capture=True)
    assert "pass capture=False to fit" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        ((torch.optim.SGD, {"lr": 0.1}), ""),
        ((torch.optim.SGD, {"lr": torch.tensor(0.1)}), "a learning rate that is a tensor"),
        ((torch.optim.AdamW, {"lr": 0.1}), "unless it gets capturable=True"),
        ((torch.optim.AdamW, {"lr": 0.1, "capturable": True}), ""),
        ((torch.optim.Adagrad, {"lr": 0.1}), "does not say that it can be recorded"),
    ],
)
def test_which_optimizers_can_be_recorded(optimizer, reason):
    found = why_not_recorded(optimizer[0](nn.Linear(2, 2).parameters(), **optimizer[1]))
    assert reason in found
    assert bool(reason) == bool(found)


def test_people_are_told_what_is_not_recorded(graphs, monkeypatch):
    handler = make(ADAM)
    said = []
    monkeypatch.setattr(handler.logger, "info", lambda text, *args: said.append(text))
    fit(handler, capture=True)
    assert said == [
        "capture: forward and backward are recorded, the optimizer's step is not: Adam counts "
        "steps on the host unless it gets capturable=True"
    ]
    fit(handler, samples(8), capture=True, epochs=1)
    assert said[-1] == (
        "capture: no step was recorded: it takes 4 batches of one form in a row, with nothing "
        "else changing"
    )


# ---- what stands in for CUDA --------------------------------------------------------------------


def test_the_stand_in_is_as_treacherous_as_cuda(graphs):
    """Recording has no effect; a replay repeats numbers and places, not Python."""
    x, number, calls = torch.zeros(2), [2.0], []

    def work():
        calls.append(1)
        x.add_(number[0])
        return x * 2

    replay, twice = graphs.record(work, [])
    assert x.tolist() == [0, 0]
    number[0] = 100.0
    replay()
    replay()
    assert (x.tolist(), twice.tolist(), len(calls)) == ([4, 4], [8, 8], 1)


def test_the_stand_in_draws_what_the_device_would_draw(graphs):
    torch.manual_seed(1)
    expected = [torch.rand(2), torch.rand(2)]
    torch.manual_seed(1)
    replay, drawn = graphs.record(lambda: torch.rand(2), [])
    for values in expected:
        replay()
        assert torch.equal(drawn, values)
