"""SDE and sampler of a handler: what may be set, and what stays after an error."""

from __future__ import annotations

import pytest
import torch

from fitkit import ConfigurationError
from fitkit.generative import VESDE, VPSDE
from fitkit.generative.components import GenerativeComponents

OPTIONS = {"divide_by_std": True, "likelihood_weighting": False}


class Noise:
    def __init__(self, scale=1.0):
        self.scale = scale

    def sample(self, n, device):
        return self.scale * torch.randn(n, device=device)

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


@pytest.fixture
def components():
    return GenerativeComponents()


def test_nothing_is_set_at_first(components):
    assert components.sde is components.matching is components.sampler is None
    assert components.sde_spec is components.sampler_spec is None


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("weighting", [True, False])
def test_an_sde_is_built_with_its_loss(components, divide, weighting):
    components.set_sde(
        VPSDE, {"beta_max": 5.0}, divide_by_std=divide, likelihood_weighting=weighting
    )
    assert (type(components.sde), components.sde.beta_max) == (VPSDE, 5.0)
    matching = components.matching
    assert (matching.divide_by_std, matching.likelihood_weighting) == (divide, weighting)
    assert (components.sde_spec.cls, components.sde_spec.kwargs) == (VPSDE, {"beta_max": 5.0})


@pytest.mark.parametrize("wrong", [VPSDE(), "VPSDE", Noise, None])
def test_an_sde_has_to_be_a_class_of_its_kind(components, wrong):
    with pytest.raises(ConfigurationError, match=r"set_sde expects an SDE class.*pass the class"):
        components.set_sde(wrong, {}, **OPTIONS)


@pytest.mark.parametrize("arguments", [{"beta_mx": 1.0}, {"beta_max": -1.0}])
def test_an_sde_that_cannot_be_built_leaves_the_old_one(components, arguments):
    components.set_sde(VESDE, {}, **OPTIONS)
    before = vars(components).copy()
    with pytest.raises(ConfigurationError, match=r"beta_ma?x"):
        components.set_sde(VPSDE, arguments, **OPTIONS)
    assert vars(components) == before


def test_a_sampler_is_built_from_a_class_or_taken_as_it_is(components):
    arguments = {"scale": 3.0}
    components.set_sampler(Noise, arguments)
    arguments["scale"] = 0.0
    assert components.sampler.scale == 3.0
    assert components.sampler_spec.kwargs == {"scale": 3.0}
    ready = Noise()
    components.set_sampler(ready, {})
    assert components.sampler is ready
    assert components.sampler_spec is None


@pytest.mark.parametrize(
    ("sampler", "arguments", "sentence"),
    [
        (Noise(), {"scale": 1.0}, "a ready sampler and further arguments: pass its class"),
        (torch.randn, {}, "needs the methods sample.*builtin_function_or_method does not all"),
        (VPSDE, {}, "which VPSDE does not all have"),  # it has no sample
        (Noise, {"scal": 1.0}, "Did you mean 'scale'"),
    ],
)
def test_what_is_no_sampler_leaves_the_old_one(components, sampler, arguments, sentence):
    components.set_sampler(Noise, {})
    before = vars(components).copy()
    with pytest.raises(ConfigurationError, match=sentence):
        components.set_sampler(sampler, arguments)
    assert vars(components) == before
