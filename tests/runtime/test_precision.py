import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.core.errors import ConfigurationError, FitkitError
from fitkit.runtime.precision import make_precision
from fitkit.testing import assert_resumes_exactly

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [None, "fp32", "bf16", "fp16"])
def test_known_names(name):
    assert make_precision(name, CPU).name == (name or "fp32")


@pytest.mark.parametrize("name", ["", "float16", 16, False, 0, "FP16", ["fp16"]])
def test_unknown_names(name):
    with pytest.raises(ConfigurationError, match="one of 'bf16', 'fp16', 'fp32' or None, received"):
        make_precision(name, CPU)


def test_a_near_miss_is_offered():
    with pytest.raises(ConfigurationError, match="Did you mean 'bf16'"):
        make_precision("bf1", CPU)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_forward_computes_in_the_format(name, dtype):
    with make_precision(name, CPU).forward():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def step_with(precision, gradient, unscale=False):
    """One step of w = 1 with learning rate 1 on the loss gradient * w."""
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision.backward(weight * gradient)
    if unscale:
        precision.unscale(optimizer)
        seen = weight.grad.item()
        return precision.step(optimizer), weight.item(), seen
    return precision.step(optimizer), weight.item()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("unscale", [True, False])
def test_a_step_uses_the_gradient_of_the_loss_itself(name, unscale):
    stepped, weight, *seen = step_with(make_precision(name, CPU), 0.25, unscale)
    assert stepped is True
    assert weight == 0.75
    assert seen in ([], [0.25])


@pytest.mark.parametrize("gradient", [float("inf"), float("nan")])
@pytest.mark.parametrize("unscale", [True, False])
def test_fp16_skips_a_step_that_overflows_and_shrinks_its_scale(gradient, unscale):
    precision = make_precision("fp16", CPU)
    before = precision.scaler.get_scale()
    stepped, weight = step_with(precision, gradient, unscale)[:2]
    assert stepped is False
    assert weight == 1.0
    assert precision.scaler.get_scale() == before / 2
    assert step_with(precision, 0.25) == (True, 0.75)


def test_fp16_does_not_step_with_a_scale_of_zero():
    precision = make_precision("fp16", CPU)
    precision.load_state_dict({**precision.state_dict(), "scale": 0.0})
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision.backward(weight * 1.0)
    with pytest.raises(FitkitError, match=r"the loss scale of fp16 fell to 0 .*bf16"):
        precision.step(optimizer)
    assert weight.item() == 1.0


def test_fp32_does_not_skip():
    assert step_with(make_precision("fp32", CPU), float("inf")) == (True, float("-inf"))


def test_the_growth_of_the_scale_is_part_of_the_state():
    one, other = make_precision("fp16", CPU), make_precision("fp16", CPU)
    step_with(one, float("inf"))
    step_with(one, 0.25)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() != make_precision("fp16", CPU).state_dict()
    one.load_state_dict({})  # of a run that had no scaler
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_others_have_no_state_and_take_a_scalers(name):
    precision = make_precision(name, CPU)
    assert precision.state_dict() == {}
    precision.load_state_dict(make_precision("fp16", CPU).state_dict())
    assert precision.state_dict() == {}


def test_a_resumed_window_that_gets_no_further_batch_takes_its_step():
    def make_handler():
        handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_train_step(step)
        samples = torch.ones(6, 2)
        samples[2:] = 0.0  # to be skipped
        handler.set_train_loader(samples, batch_size=2, shuffle=False)
        return handler

    def step(handler, batch):
        return handler.model(batch).square().mean() if batch.any() else None

    assert_resumes_exactly(make_handler, epochs=2, gradient_accumulation_steps=2, precision="fp16")
