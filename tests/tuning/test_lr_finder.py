import builtins
import math

import pytest
import torch
from torch import nn

import fitkit
from fitkit.tuning.lr_finder import steepest


def data(size=256):
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


class Spy(nn.Module):
    """Records the size of each batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.layers(x)


def make(optimizer=torch.optim.SGD, params=None, **kwargs):
    handler = fitkit.NNHandler(Spy(), "cpu", seed=0)
    handler.set_optimizer(optimizer, params=params, lr=0.3, **kwargs)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader(data(), batch_size=16)
    return handler


def test_rates_grow_exponentially_and_the_losses_are_those_of_a_loop_by_hand():
    handler = make()
    twin = Spy()
    twin.load_state_dict(handler.module.state_dict())
    sweep = handler.find_learning_rate(min_lr=1e-3, max_lr=1e-1, num_steps=9)
    assert sweep.lrs == pytest.approx([10 ** (-3 + step / 4) for step in range(9)])
    order = []
    watched = make()
    watched.set_train_step(lambda handler, batch: order.append(batch) or twin_loss(twin, batch))
    watched.find_learning_rate(min_lr=1e-3, max_lr=1e-1, num_steps=9)
    twin.load_state_dict(handler.module.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    losses = []
    for lr, batch in zip(sweep.lrs, order, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = twin_loss(twin, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sweep.losses == tuple(losses)


def twin_loss(twin, batch):
    # depends on the parameters of whoever trains, so that a backward pass is possible
    return nn.functional.cross_entropy(twin(batch[0]), batch[1])


def test_it_finds_where_training_works():
    handler = make(torch.optim.Adam)
    sweep = handler.find_learning_rate()
    assert sweep.diverged or len(sweep.lrs) == 100
    assert 1e-4 < sweep.suggestion < 1.0
    lr = sweep.suggestion
    for group in handler.optimizer.param_groups:
        group["lr"] = lr
    losses = handler.fit(epochs=5, progress_bar=False).train_losses
    assert losses[-1] < 0.5 * losses[0]


def test_it_stops_where_the_loss_diverges():
    sweep = make().find_learning_rate(min_lr=1.0, max_lr=1e9, num_steps=200)
    assert sweep.diverged
    assert len(sweep.lrs) == len(sweep.losses) == len(sweep.smoothed) < 200


def test_a_loss_that_is_not_finite_ends_it():
    handler = make()
    handler.set_loss_fn(lambda outputs, targets: outputs.sum() * math.nan)
    sweep = handler.find_learning_rate()
    assert len(sweep.losses) == 1
    assert sweep.diverged
    assert sweep.suggestion is None


def test_negative_losses_diverge_when_they_have_grown_by_as_much():
    handler = make()
    values = iter([-1.0, -2.0, -2.0, 3.9, 4.1, 0.0])
    handler.set_loss_fn(lambda outputs, targets: outputs.sum() * 0 + next(values))
    sweep = handler.find_learning_rate(smoothing=0.0)
    assert sweep.losses == pytest.approx((-1.0, -2.0, -2.0, 3.9, 4.1))


def test_groups_keep_their_rates_relative_to_each_other():
    seen = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def groups(module):
        first, _, last = module.layers
        return [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.03}]

    make(Noting, groups).find_learning_rate(min_lr=1e-4, max_lr=1e-2, num_steps=5)
    assert [first for first, _ in seen] == pytest.approx([10 ** (-4 + i / 2) for i in range(5)])
    assert [last / first for first, last in seen] == pytest.approx([0.1] * 5)


def test_short_data_is_read_again_and_batches_can_be_sized():
    handler = make()
    handler.find_learning_rate(data(24), num_steps=10, batch_size=8)
    assert handler.module.sizes == [8] * 10


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 2.0, 2.0, 1.5, 1.4, 9.0], 1e-3),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None),  # never falls
        ([2.0, 1.0, 0.5, 0.4], None),  # too few to say
        ([2.0, 1.9, 1.0, 0.9, 0.8, math.nan], 1e-4),
    ],
)
def test_the_suggestion(losses, expected):
    lrs = [10.0 ** (power - 6) for power in range(len(losses))]
    assert steepest(lrs, losses) == (None if expected is None else pytest.approx(expected))


def test_what_is_shown(tmp_path):
    sweep = make(torch.optim.Adam).find_learning_rate(num_steps=40)
    assert f"suggestion={sweep.suggestion:.2e}" in repr(sweep)
    assert "<svg" in sweep._repr_html_()
    figure = sweep.plot(tmp_path / "plots" / "sweep.png")
    assert (tmp_path / "plots" / "sweep.png").stat().st_size > 1000
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert tuple(axes.lines[0].get_ydata()) == sweep.losses
    nothing = fitkit.LearningRateSweep((), (), (), None, diverged=True)
    assert repr(nothing) == (
        "LearningRateSweep(0 rates, none, diverged; no suggestion: the loss never fell)"
    )


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    sweep = make().find_learning_rate(num_steps=5)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(fitkit.ConfigurationError, match=r"LearningRateSweep.plot needs.*pip"):
        sweep.plot()


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_lr": 0},
        {"min_lr": 1.0, "max_lr": 0.1},
        {"max_lr": math.inf},
        {"num_steps": 4},
        {"smoothing": 1.0},
        {"divergence": 1.0},
        {"divergence": "much"},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises(fitkit.ConfigurationError, match="received"):
        make().find_learning_rate(**wrong)


def test_without_an_optimizer():
    handler = fitkit.NNHandler(Spy(), "cpu")
    handler.set_loss_fn(nn.CrossEntropyLoss())
    with pytest.raises(fitkit.ConfigurationError, match="set_optimizer"):
        handler.find_learning_rate(data())
    handler.set_train_step(lambda handler, batch: None)
    with pytest.raises(fitkit.ConfigurationError, match="set_optimizer"):
        handler.find_learning_rate(data())
