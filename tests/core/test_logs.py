import pytest
import torch

from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import EMPTY_LOGS, Deferred, Logs, as_float, as_loggable


@pytest.mark.parametrize(
    "value", [1.5, torch.tensor(1.5), torch.tensor([[1.5]]), torch.tensor(1.5, requires_grad=True)]
)
def test_one_number_becomes_a_plain_float(value):
    assert as_float("x", value) == 1.5
    assert type(as_float("x", value)) is float


@pytest.mark.parametrize(
    "value", [None, "1.5", b"1", [1.0], torch.zeros(2), torch.zeros(0), 1j, torch.tensor(1j)]
)
def test_what_is_not_one_number_is_refused(value):
    with pytest.raises(
        ConfigurationError, match=f"'x' must be one number .* received {type(value).__name__}: "
    ):
        as_float("x", value)


def test_tensors_are_read_once_and_only_when_asked():
    calls = []
    logs = Logs({"a": Deferred(lambda: calls.append(1) or 2), "b": torch.tensor(1)})
    assert "a" in logs
    assert list(logs) == ["a", "b"]
    assert len(logs) == 2
    assert calls == []
    assert logs["a"] == 2.0
    assert logs["a"] == 2.0
    assert calls == [1]
    assert type(logs["b"]) is float


def test_a_missing_name_lists_what_is_there():
    logs = Logs({"val_loss": 1.0, "loss": 2.0})
    with pytest.raises(
        KeyError, match=r"not in the logs, which hold 'loss', 'val_loss'.*Did you mea"
    ):
        logs["val_los"]
    with pytest.raises(KeyError, match="3 is not in the logs"):
        logs[3]
    assert logs.get("accuracy") is None
    assert logs.get("accuracy", 3) == 3
    with pytest.raises(KeyError, match="hold none"):
        EMPTY_LOGS["loss"]


def test_a_logged_none_is_an_error_about_its_value():
    with pytest.raises(ConfigurationError, match="'loss' must be one number"):
        Logs({"loss": None})["loss"]


def test_logs_are_read_only_and_live():
    values = {"loss": 1.0}
    logs = Logs(values)
    with pytest.raises(TypeError):
        logs["loss"] = 2.0
    copied = logs.copy()
    copied["loss"] = 3.0
    values["late"] = 4.0
    assert dict(logs) == {"loss": 1.0, "late": 4.0}
    assert repr(logs) == "Logs({'loss': 1.0, 'late': 4.0})"


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2),
        torch.ones(0),
        torch.tensor(1j),
        torch.ones(1, device="meta"),
        torch.eye(1).to_sparse(),
        None,
        "0.5",
        b"1",
        [1.0],
        {},
        1j,
        10**400,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_become_a_number_later_is_refused_at_once(value):
    with pytest.raises(ConfigurationError, match=r"'score' must be one number .* received"):
        as_loggable("score", value)


def test_a_tensor_is_not_read_but_is_a_copy():
    own = torch.ones(1, 1, requires_grad=True)
    logged = as_loggable("score", own)
    with torch.no_grad():
        own += 1
    assert (type(logged), logged.requires_grad, float(logged)) == (torch.Tensor, False, 1.0)
    assert type(as_loggable("score", True)) is float


def test_values_of_this_rank_are_those_of_all_unless_given():
    values = {"loss": torch.tensor(2.0)}
    assert Logs(values).of_this_rank is values
    logs = Logs({"loss": 1.0}, own=values)
    assert (dict(logs), logs.of_this_rank) == ({"loss": 1.0}, values)
    assert dict(Logs(own=values)) == {}
