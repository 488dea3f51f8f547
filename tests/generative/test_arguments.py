from __future__ import annotations

import pytest
import torch

from fitkit import ConfigurationError
from fitkit.generative.arguments import as_conditions, as_sample_shape, find_method
from fitkit.generative.guidance import guide_score


def test_conditions_serve_all_samples():
    one, several = torch.ones(1, 3), torch.arange(4)
    expanded, same = as_conditions([one, several], 4)
    assert expanded.shape == (4, 3)
    assert torch.equal(same, several)
    assert as_conditions(several, 4)[0].shape == (4,)
    assert as_conditions((), 4) == ()


@pytest.mark.parametrize("given", [[torch.ones(3)], [torch.tensor(1.0)], [1], torch.ones(2, 4)])
def test_conditions_for_another_number_of_samples(given):
    with pytest.raises(ConfigurationError, match=r"conditions must be tensors of shape \(4, ...\)"):
        as_conditions(given, 4)


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, -1), (2.0, 2), (True, 2)])
def test_shapes_that_hold_no_samples(shape):
    with pytest.raises(ConfigurationError, match="the shape of samples must be"):
        as_sample_shape(shape)


def test_methods_and_their_options():
    assert find_method("ode", {"tolerance": 1.0}).__name__ == "probability_flow_ode"
    with pytest.raises(ConfigurationError, match="Did you mean 'euler_maruyama'"):
        find_method("euler_maruyma", {})
    with pytest.raises(ConfigurationError, match=r"takes the options 'corrector_steps'.*Did you"):
        find_method("predictor_corrector", {"corector_steps": 1})
    with pytest.raises(ConfigurationError, match="takes the options none, received 'tolerance'"):
        find_method("euler_maruyama", {"tolerance": 1.0})


def score(t, x, *conditions):
    return x + sum(conditions)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 6.0), (2.0, 11.0)])
def test_guidance_moves_away_from_the_unconditional_score(scale, expected):
    t, x, condition = torch.zeros(1), torch.ones(1, 1), torch.tensor([[5.0]])
    assert guide_score(score, [condition], [], scale)(t, x).item() == expected
    null = torch.tensor([[1.0]])
    assert guide_score(score, [condition], [null], 0.0)(t, x).item() == 2.0
