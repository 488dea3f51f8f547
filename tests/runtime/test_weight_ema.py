import copy

import pytest
import torch
from torch import nn

from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.runtime.weight_ema import WeightEMA, saved_decay


class Net(nn.Module):
    """Parameters, tied ones, and buffers of every kind."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.second(self.first(self.norm(x)))


def set_all(module, value):
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)


@pytest.mark.parametrize("decay", [0, 1, 0.0, 1.0, -0.1, 1.5, True, None, "0.9", float("nan")])
def test_the_decay_must_lie_in_the_open_interval(decay):
    with pytest.raises(ConfigurationError, match=r"must lie in \(0, 1\), received .*ema_decay=0.0"):
        WeightEMA(nn.Linear(1, 1), decay)


def test_the_average_follows_its_formula_from_the_first_step_on():
    module = nn.Linear(1, 1, bias=False)
    average = WeightEMA(module, 0.75)
    for value, expected in [(8.0, 8.0), (4.0, 7.0), (0.0, 5.25)]:
        set_all(module, value)
        average.update(module)
        assert average.weights()["weight"].item() == pytest.approx(expected)
    assert average.state_dict()["num_averaged"] == 3


def test_counters_and_masks_are_copied_not_averaged():
    module = Net()
    average = WeightEMA(module, 0.9)
    for step in range(1, 4):
        module(torch.randn(4, 2))
        module.mask.logical_not_()
        average.update(module)
        assert average.weights()["norm.num_batches_tracked"].item() == step
        assert torch.equal(average.weights()["mask"], module.mask)
    assert average.weights()["norm.num_batches_tracked"].dtype == torch.int64


def test_running_statistics_are_averaged():
    module = Net()
    average = WeightEMA(module, 0.5)
    for value in (2.0, 4.0):
        module.norm.running_mean.fill_(value)
        average.update(module)
    assert average.weights()["norm.running_mean"].tolist() == [3.0, 3.0]


def test_the_averages_of_buffers_are_those_in_use():
    module = Net()
    average = WeightEMA(module, 0.5)
    for buffer in average.buffers():
        buffer.fill_(1)
    weights = average.weights()
    names = {name for name, _ in module.named_buffers()} - {"cache"}  # not in the state dict
    assert len(average.buffers()) == len(names)
    assert all((weights[name] == 1).all() for name in names)
    assert torch.equal(weights["first.weight"], module.first.weight)


def test_weights_have_the_names_of_the_state_dict_and_share_nothing_with_it():
    module = Net()
    average = WeightEMA(module, 0.9)
    before = {name: value.clone() for name, value in average.weights().items()}
    assert before.keys() == module.state_dict().keys()
    set_all(module, 1)
    for name, value in average.weights().items():
        assert torch.equal(value, before[name])
    Net().load_state_dict(average.weights())


def test_tied_weights_move_once_and_stay_tied():
    module = Net()
    average = WeightEMA(module, 0.5)
    for value in (2.0, 4.0):
        set_all(module, value)
        average.update(module)
    assert average.weights()["first.weight"].unique().tolist() == [3.0]
    assert average.weights()["second.weight"] is average.weights()["first.weight"]


def test_short_floats_are_averaged_without_losing_small_steps():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = WeightEMA(module, 0.999)
    set_all(module, 1.0)
    average.update(module)
    set_all(module, 1.5)
    for _ in range(100):
        average.update(module)
    expected = 1.5 - 0.5 * 0.999**100
    assert average.weights()["weight"].item() == pytest.approx(expected, rel=1e-4)
    with average.swapped_into(module):
        assert module.weight.dtype == torch.bfloat16
        assert module.weight.item() == pytest.approx(expected, rel=1e-2)
    assert module.weight.item() == 1.5


def test_the_model_is_not_copied():
    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("holds a lock")

    WeightEMA(Uncopyable(1, 1), 0.9)


def test_gradients_and_their_flags_are_untouched():
    module = Net()
    module.first.bias.requires_grad_(False)
    module(torch.randn(4, 2)).sum().backward()
    before = {n: (p.requires_grad, copy.deepcopy(p.grad)) for n, p in module.named_parameters()}
    average = WeightEMA(module, 0.9)
    average.update(module)
    with average.swapped_into(module):
        pass
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert parameter.grad is before[name][1] or torch.equal(parameter.grad, before[name][1])
    assert not any(value.requires_grad for value in average.weights().values())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_own_weights_come_back_however_it_ends(error):
    module = Net()
    average = WeightEMA(module, 0.5)
    average.update(module)
    set_all(module, 1)
    own = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: id(p) for name, p in module.named_parameters()}
    averaged = {name: value.clone() for name, value in average.weights().items()}
    try:
        with average.swapped_into(module):
            for name, value in module.state_dict().items():
                assert torch.equal(value, averaged[name])
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    for name, value in module.state_dict().items():
        assert torch.equal(value, own[name])
    assert {name: id(p) for name, p in module.named_parameters()} == tensors
    for name, value in average.weights().items():
        assert torch.equal(value, averaged[name]), "swapping must not change the average"


def test_a_cache_may_change_its_shape():
    module = Net()
    average = WeightEMA(module, 0.5)
    module.cache = torch.ones(7)
    average.update(module)
    with average.swapped_into(module):
        assert module.cache.tolist() == [1.0] * 7


def test_state_round_trip_goes_on_as_it_was(tmp_path):
    module = Net()
    one = WeightEMA(module, 0.5)
    one.update(module)
    set_all(module, 3)
    one.update(module)
    torch.save(one.state_dict(), tmp_path / "ema.pt")
    other = WeightEMA(Net(), 0.5)
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    set_all(module, 5)
    one.update(module)
    other.update(module)
    assert one.state_dict()["num_averaged"] == other.state_dict()["num_averaged"] == 3
    for name, value in one.weights().items():
        assert torch.equal(value, other.weights()[name])
    assert other.weights()["second.weight"] is other.weights()["first.weight"]


def test_the_constructors_decay_wins():
    one, other = WeightEMA(nn.Linear(1, 1), 0.5), WeightEMA(nn.Linear(1, 1), 0.9)
    other.load_state_dict(one.state_dict())
    assert other.decay == 0.9
    assert other.state_dict()["decay"] == 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("weights"), "lacks 'weights'"),
        (lambda s: s.pop("num_averaged"), "lacks 'num_averaged'"),
        (lambda s: s["weights"].pop("bias"), "missing 'bias', unknown none"),
        (lambda s: s["weights"].update(new=torch.ones(1)), "missing none, unknown 'new'"),
        (
            lambda s: s["weights"].update(bias=torch.ones(3)),
            r"bias: expected shape \(2,\), found \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    average = WeightEMA(nn.Linear(2, 2), 0.5)
    before = {name: value.clone() for name, value in average.weights().items()}
    state = WeightEMA(nn.Linear(2, 2), 0.5).state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        average.load_state_dict(state)
    for name, value in average.weights().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("state", "decay"),
    [({"decay": 0.5}, 0.5), ({}, 0.999), ({"decay": float("nan")}, 0.999), ({"decay": 1.0}, 0.999)],
)
def test_saved_decay(state, decay):
    assert saved_decay(state) == decay


def average_of(module, *changes):
    """The average after each change of the module."""
    average, found = WeightEMA(module, 0.5), []
    for change in changes:
        change(module)
        average.update(module)
        found.append(float(average.weights()["weight"]))
    return found


def replace_parameter(module):
    module.weight = nn.Parameter(torch.full((1, 1), 4.0))


def replace_data(module):
    module.weight.data = torch.full((1, 1), 4.0)


def replace_dtype(module):
    module.weight.data = torch.full((1, 1), 4.0, dtype=torch.float64)


def load_in_place_of_it(module):
    module.load_state_dict({"weight": torch.full((1, 1), 4.0)}, assign=True)


@pytest.mark.parametrize(
    "change", [replace_parameter, replace_data, replace_dtype, load_in_place_of_it]
)
def test_a_tensor_that_is_replaced_is_averaged_from_then_on(change):
    module = nn.Linear(1, 1, bias=False)
    set_all(module, 8.0)
    assert average_of(module, lambda _: None, change, lambda _: None) == [8.0, 6.0, 5.0]


def test_a_layer_that_is_put_in_place_of_another_is_averaged():
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    set_all(module, 8.0)
    average = WeightEMA(module, 0.5)
    average.update(module)
    module[0] = nn.Linear(1, 1, bias=False)
    set_all(module, 4.0)
    average.update(module)
    assert float(average.weights()["0.weight"]) == 6.0


def test_lazy_parameters_are_averaged_once_they_have_values():
    module = nn.Sequential(nn.Linear(1, 1), nn.LazyLinear(1, bias=False))
    average = WeightEMA(module, 0.5)
    average.update(module)
    assert "1.weight" not in average.weights()
    module(torch.ones(1, 1))
    for value, expected in ((8.0, 8.0), (4.0, 6.0)):
        set_all(module, value)
        average.update(module)
        assert float(average.weights()["1.weight"]) == expected
