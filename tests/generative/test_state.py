"""Config and state of SDE and sampler: saved, rebuilt, loaded, or kept until they are set."""

from __future__ import annotations

import pytest
import torch

from fitkit import CheckpointError
from fitkit.checkpointing.format.class_names import class_name
from fitkit.generative import VESDE, VPSDE, SubVPSDE
from fitkit.generative.components import GenerativeComponents
from fitkit.generative.state import (
    load_component,
    load_pending,
    rebuild_generative,
    sampler_config,
    sde_config,
)

OPTIONS = {"divide_by_std": False, "likelihood_weighting": True}


class Counter:
    """A sampler with state."""

    def __init__(self, start=0, unused=None):
        self.count = int(start)

    def sample(self, n, device):
        return torch.zeros(n, device=device)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def components_of(sde=None, sampler=None, **arguments):
    components = GenerativeComponents()
    if sde is not None:
        components.set_sde(sde, arguments, **OPTIONS)
    if sampler is not None:
        components.set_sampler(sampler, arguments if sde is None else {})
    return components


def saved(components):
    return {"sde": sde_config(components, {}), "sampler": sampler_config(components, {}, 3)}


def test_nothing_set_is_none():
    assert saved(GenerativeComponents()) == {"sde": None, "sampler": None}
    components = GenerativeComponents()
    rebuild_generative(components, {"sde": None, "sampler": None})
    assert vars(components) == vars(GenerativeComponents())


def test_an_sde_alone_keeps_the_number_of_draws():
    expected = {"class": None, "kwargs": None, "state": {}, "draws": 3}
    assert saved(components_of(VPSDE))["sampler"] == expected
    assert sampler_config(GenerativeComponents(), {"sde": {"class": "x:Y"}}, 3) == expected


def test_a_rebuilt_sde_has_its_arguments_and_options():
    rebuilt = GenerativeComponents()
    rebuild_generative(rebuilt, saved(components_of(VPSDE, Counter, beta_max=7.0)))
    assert (type(rebuilt.sde), rebuilt.sde.beta_max) == (VPSDE, 7.0)
    assert vars(rebuilt.matching) == {"sde": rebuilt.sde, **OPTIONS}
    assert type(rebuilt.sampler) is Counter


def test_a_ready_sampler_is_not_rebuilt():
    rebuilt = GenerativeComponents()
    with pytest.warns(UserWarning, match="arguments of the sampler .* call set_sampler after"):
        rebuild_generative(rebuilt, saved(components_of(sampler=Counter(2))))
    assert rebuilt.sampler is None


def test_arguments_that_cannot_be_stored_are_a_warning():
    with pytest.warns(UserWarning, match="could not be stored"):
        rebuild_generative(
            GenerativeComponents(), saved(components_of(sampler=Counter, unused=object()))
        )


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("sde", {"class": "no.module:SDE"}, "'no.module' is not imported.*skip_sampler_sde=True"),
        ("sde", {"class": "torch.nn.modules.linear:Linear"}, "where a SDE is needed"),
        ("sampler", {"class": class_name(VPSDE)}, "where a Sampler is needed"),
        ("sampler", {"kwargs": {"start": "x"}}, "sampler cannot be built.*call set_sampler your"),
    ],
)
def test_what_cannot_be_rebuilt_is_an_error(part, change, sentence):
    state = saved(components_of(VPSDE, Counter))
    state[part].update(change)
    with pytest.raises(CheckpointError, match=sentence):
        rebuild_generative(GenerativeComponents(), state)


def test_state_is_loaded_into_the_sampler_that_is_set():
    components, pending = components_of(sampler=Counter), {}
    state = saved(components_of(sampler=Counter, start=5))["sampler"]
    load_component("sampler", components, pending, state)
    assert components.sampler.count == 5
    assert not pending


def test_state_waits_until_its_component_is_set_and_is_saved_meanwhile():
    components, pending = GenerativeComponents(), {}
    state = saved(components_of(sampler=Counter, start=5))["sampler"]
    load_component("sampler", components, pending, state)
    assert sampler_config(components, pending, 4) == {**state, "draws": 4}
    components.set_sampler(Counter, {})
    load_pending(components, pending)
    assert components.sampler.count == 5
    assert not pending


@pytest.mark.parametrize("later", [None, {"class": None, "kwargs": None, "state": {}, "draws": 0}])
def test_a_later_checkpoint_without_the_component_replaces_what_waits(later):
    pending = {"sampler": saved(components_of(sampler=Counter, start=5))["sampler"]}
    load_component("sampler", GenerativeComponents(), pending, later)
    assert not pending


def test_an_sde_that_waits_is_saved_as_it_was():
    state, pending = saved(components_of(SubVPSDE)), {}
    load_component("sde", GenerativeComponents(), pending, state["sde"])
    assert sde_config(GenerativeComponents(), pending) == state["sde"]


def test_another_class_is_an_error_and_the_state_still_waits():
    components, pending = components_of(VESDE), {}
    with pytest.raises(CheckpointError, match=r"holds the sde .*VPSDE.*has .*VESDE.*set_sde"):
        load_component("sde", components, pending, saved(components_of(VPSDE))["sde"])
    assert pending["sde"]["class"].endswith(":VPSDE")
