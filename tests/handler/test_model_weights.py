"""The weights of a model and their average: which of the two each method reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, ConfigurationError
from fitkit.core.types import ModelType
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World
from fitkit.handler.model_weights import ModelWeights
from fitkit.handler.parts import Parts


def make():
    module = nn.BatchNorm1d(2)
    parts = Parts(module, {}, ModelType.REGRESSION, torch.device("cpu"))
    return module, ModelWeights(parts, Parallel(World()))


def filled(module, value):
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)


def values(weights):
    return {float(tensor.float().mean()) for tensor in weights.values()}


@pytest.fixture
def averaged():
    """All weights are 3, their average is 2: that of 1 and 3; the counter is copied."""
    module, weights = make()
    ema = weights.start_ema(0.5)
    for value in (1, 3):
        filled(module, value)
        ema.update(module)
    return module, weights


def test_without_an_average_there_is_one_set_of_weights():
    module, weights = make()
    filled(module, 5)
    assert values(weights.training()) == values(weights.evaluated()) == {5.0}
    with weights.swapped_in():
        assert values(module.state_dict()) == {5.0}


def test_the_average_is_for_evaluation_and_training_weights_stay(averaged):
    module, weights = averaged
    assert values(weights.training()) == {3.0}
    assert values(weights.evaluated()) == {2.0, 3.0}
    with weights.swapped_in():
        assert float(module.weight.detach().mean()) == 2.0
        assert values(weights.training()) == {3.0}
        assert float(weights.evaluated()["weight"].mean()) == 2.0
    assert values(module.state_dict()) == {3.0}


def test_training_weights_are_live_and_evaluated_ones_are_copies(averaged):
    module, weights = averaged
    live, copied = weights.training(), weights.evaluated()
    filled(module, 7)
    weights.ema.update(module)
    assert values(live) == {7.0}
    assert values(copied) == {2.0, 3.0}


def test_evaluated_weights_can_be_read_with_another_map(averaged):
    seen = []
    averaged[1].evaluated(lambda tensor: seen.append(tensor) or tensor)
    assert len(seen) == len(averaged[0].state_dict())


def test_a_second_start_goes_on_with_another_decay(averaged):
    _, weights = averaged
    ema = weights.ema
    assert weights.start_ema(0.9) is ema
    assert ema.decay == 0.9
    assert float(ema.weights()["weight"].mean()) == 2.0
    with pytest.raises(ConfigurationError, match="decay"):
        weights.start_ema(1.0)


@pytest.mark.parametrize("decay", [None, 0.25])
def test_a_saved_average_goes_on_with_its_decay(averaged, decay):
    state = averaged[1].ema.state_dict()
    module, other = make()
    if decay is not None:
        other.start_ema(decay)
    other.load_ema(state)
    assert other.ema.decay == 0.5
    assert float(other.ema.weights()["weight"].mean()) == 2.0
    assert float(module.weight.detach().mean()) == 1.0  # the model itself is not changed


@pytest.mark.parametrize("state", [None, {}])
def test_a_checkpoint_without_an_average_ends_it(averaged, state):
    averaged[1].load_ema(state)
    assert averaged[1].ema is None


def test_load_changes_the_model_and_restore_the_average_too(averaged):
    module, weights = averaged
    new = {name: torch.full_like(value, 9) for name, value in module.state_dict().items()}
    weights.load(new)
    assert values(weights.training()) == {9.0}
    assert float(weights.evaluated()["weight"].mean()) == 2.0
    weights.restore(new)
    assert values(weights.evaluated()) == {9.0}


def test_names_that_do_not_fit():
    module, weights = make()
    filled(module, 5)
    part = {"weight": torch.zeros(2), "unknown": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"Missing key.*bias"):
        weights.load(part)
    weights.load(part, strict=False)
    assert values(module.state_dict()) == {0.0, 5.0}


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def test_the_average_of_a_loss_is_that_of_the_loss_that_is_set():
    module = nn.Linear(1, 1)
    parts = Parts(module, {}, ModelType.REGRESSION, torch.device("cpu"))
    weights = ModelWeights(parts, Parallel(World()))
    first, second = Loss(), Loss()
    weights.start_ema(0.5)
    parts.set_loss(first, False, {})
    assert weights.loss_ema_state() is None
    for value in (1.0, 3.0):
        filled(first, value)
        weights.update_ema()
    assert weights.loss_ema_state()["weights"] == {"scale": torch.tensor(2.0)}
    assert weights.loss_state() == {"scale": torch.tensor(3.0)}
    with weights.swapped_in():
        assert first.scale.item() == 2.0
        assert weights.loss_state() == {"scale": torch.tensor(3.0)}  # what training goes on with
    assert first.scale.item() == 3.0
    saved = weights.loss_ema_state()
    parts.set_loss(second, False, {})
    assert weights.loss_ema_state() is None
    weights.load_loss_ema(saved)
    assert weights.loss_ema_state()["weights"] == {"scale": torch.tensor(2.0)}
    weights.load_loss_ema(None)
    assert weights.loss_ema_state() is None
    weights.update_ema()
    weights.drop_ema()
    assert weights.ema is weights.loss_ema_state() is None
    weights.update_ema()  # nothing to update


def test_without_a_loss_module_there_is_nothing_to_load():
    _, weights = make()
    weights.load_loss({"scale": torch.ones(())})
    assert weights.loss_state() is None
