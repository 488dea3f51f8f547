"""The configuration of a call of ``fit``, as a checkpoint holds it and a resume compares it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fitkit import ConfigurationError, NNHandler
from fitkit.core.state import FitState
from fitkit.data.spec import DataSpec
from fitkit.training.options import FitOptions
from fitkit.training.run_config import (
    config_changes,
    is_stop_obsolete,
    require_same_run,
    run_config,
)

ROWS = torch.ones(10, 2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


class Endless:
    def __iter__(self):
        return iter([ROWS])


def config_of(data=ROWS, handler=None, **options):
    if handler is None:
        handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    return run_config(handler, FitOptions(**options), DataSpec(data), {})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((ROWS, ROWS), "10 samples"),
        (ROWS.numpy(), "10 samples"),
        (TensorDataset(ROWS), "10 samples"),
        (DataLoader(TensorDataset(ROWS), batch_size=3), "10 samples"),
        ([(ROWS, ROWS)] * 4, "4 batches"),
        (DataLoader(Stream()), None),
        (Stream(), None),
        (Endless(), None),
        ((batch for batch in [ROWS]), None),
    ],
)
def test_the_length_of_the_data(data, text):
    assert config_of(data)["training data"] == text


def plain_loss(outputs, targets, weight=1.0):
    return weight * (outputs - targets).mean()


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing=0.1"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), "weight=<Tensor>"),
        (plain_loss, "plain_loss()"),
        (nn.Sequential(), "Sequential()"),
    ],
)
def test_the_loss_in_words(loss, text):
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1)
    assert config_of(handler=handler)["loss"] is None
    handler.set_loss_fn(loss)
    assert text in config_of(handler=handler)["loss"]
    assert " at 0x" not in config_of(handler=handler)["loss"], "the text is the same in each start"


def test_arguments_of_the_loss_are_part_of_it():
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1)
    handler.set_loss_fn(plain_loss, weight=2.0)
    assert config_of(handler=handler)["loss"] == "plain_loss(weight=2.0)"


def test_what_differs_is_one_line_each():
    saved, current = config_of(epochs=3), config_of(epochs=5, precision="bf16")
    assert config_changes(saved, current) == ["epochs: 3 -> 5", "precision: None -> bf16"]
    assert config_changes(saved, saved) == []
    assert config_changes({}, current) == [], "a file of an earlier version holds no configuration"


def test_a_value_that_another_version_of_fitkit_saves_is_no_difference():
    saved = config_of()
    assert config_changes({**saved, "of a later version": 1}, saved) == []


@pytest.mark.parametrize("change", [{"seed": 7}, {"data": ROWS[:8]}])
def test_another_seed_or_other_data_is_an_error_that_says_how_to_go_on(change):
    saved = config_of(seed=3)
    changed = config_of(**{"seed": 3, **change})
    with pytest.raises(ConfigurationError, match=r"To train anew.*resume='a/b\.pth'") as error:
        require_same_run(saved, changed, "a/b.pth")
    old_and_new = ("is 3;", "is 7.") if "seed" in change else ("10 samples;", "8 samples.")
    assert all(text in str(error.value) for text in old_and_new)


@pytest.mark.parametrize("change", [{"seed": None}, {"data": Endless()}, {"epochs": 9}])
def test_what_the_script_leaves_open_is_no_error(change):
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1)
    changed = config_of(**{"seed": 3, **change}, handler=handler)
    require_same_run(config_of(seed=3), changed, "a.pth")
    require_same_run({}, changed, "a.pth")


@pytest.mark.parametrize(
    ("reason", "epochs", "changes", "obsolete"),
    [
        (None, 9, ["EarlyStopping patience: 2 -> 5"], False),
        ("EarlyStopping: no improvement", 3, ["EarlyStopping patience: 2 -> 5"], True),
        ("EarlyStopping: no improvement", 3, ["EarlyStopping (val_loss min): removed"], True),
        ("EarlyStopping: no improvement", 3, ["Timer duration: 2 -> 5"], False),
        ("EarlyStopping: no improvement", 3, [], False),
        ("EarlyStopping: no improvement", 2, [], False),
        ("EarlyStopping: no improvement", 4, [], True),
        ("stop_training was set", 4, [], True),
    ],
)
def test_when_an_early_stop_no_longer_holds(reason, epochs, changes, obsolete):
    state = FitState()
    state.stop_reason = reason
    saved = config_of(epochs=3)
    assert is_stop_obsolete(state, saved, config_of(epochs=epochs), changes) is obsolete
    assert is_stop_obsolete(state, {}, config_of(epochs=epochs), []) is False


@pytest.mark.parametrize("junk", [torch.ones(3), [torch.ones(2)], "no number", {"a": 1}])
def test_a_damaged_configuration_is_a_difference(junk):
    current = {"ema decay": 0.5, "epochs": 3, "seed": 1, "training data": "4 samples"}
    lines = config_changes({"ema decay": junk, "epochs": 3}, current)
    assert [line.partition(":")[0] for line in lines] == ["ema decay"]
    state = FitState()
    state.stop("EarlyStopping: no improvement")
    assert not is_stop_obsolete(state, {"epochs": junk}, current, [])
    with pytest.raises(ConfigurationError, match="is of a run whose seed is"):
        require_same_run({"seed": junk}, current, "file.pth")
