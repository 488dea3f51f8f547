import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fitkit.core.errors import ConfigurationError
from fitkit.runtime.device import floating_dtype, resolve_device, to_device

without_accelerator = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="needs a machine without accelerator"
)
META = torch.device("meta")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_that_is_here(device):
    assert resolve_device(device) == torch.device("cpu")


def test_none_takes_cuda_or_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device(None).type == expected


@pytest.fixture
def two_of(monkeypatch):
    """A machine with two accelerators of a kind, the second one current."""

    def _two_of(kind):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    return _two_of


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_none_takes_the_cpu_where_the_accelerator_is_no_cuda(kind, two_of):
    two_of(kind)
    assert resolve_device(None) == torch.device("cpu")
    assert resolve_device(f"{kind}:1") == torch.device(kind, 1)


@pytest.mark.parametrize("device", [None, "cuda", torch.device("cuda")])
def test_a_name_without_index_is_the_current_device(device, two_of):
    two_of("cuda")
    assert resolve_device(device) == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize(("local_rank", "index"), [(0, 0), (1, 1), (2, 0)])
def test_each_process_takes_its_own_device(device, local_rank, index, two_of):
    two_of("cuda")
    assert resolve_device(device, local_rank) == torch.device("cuda", index)


@without_accelerator
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "xpu", torch.device("cuda:1")])
def test_a_device_that_is_not_here(device):
    with pytest.raises(
        ConfigurationError, match="is not available on this machine: pass device='c"
    ):
        resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", 1.5, True, ["cpu"], "cpu:-2"])
def test_what_is_no_device(device):
    with pytest.raises(ConfigurationError, match=r"must be a torch.device or a name .* received"):
        resolve_device(device)


def test_an_index_beyond_the_last_device(two_of):
    two_of("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigurationError, match="'cuda:2' does not exist: this machine has 2"):
        resolve_device("cuda:2")
    with pytest.raises(ConfigurationError, match="'mps' is not available"):
        resolve_device("mps")


def test_tensors_of_a_batch_move_and_the_rest_stays():
    batch = {"x": torch.ones(2), "deep": (torch.ones(1), ["name", None, 3])}
    moved = to_device(batch, META)
    assert moved["x"].device == META
    assert moved["deep"][0].device == META
    assert moved["deep"][1] == ["name", None, 3]
    assert batch["x"].device.type == "cpu"


def test_a_tensor_that_is_there_is_not_copied():
    tensor = torch.ones(2)
    assert to_device(tensor, torch.device("cpu")) is tensor


def test_leaves_that_know_how_to_move_are_moved():
    class Graph:
        def to(self, device):
            return ("moved", device)

    class Paths:
        to = "a string"  # no method

    paths = Paths()
    assert to_device([Graph(), paths], META) == [("moved", META), paths]


def test_a_packed_sequence_keeps_its_lengths_on_the_cpu():
    moved = to_device((pack_sequence([torch.ones(2, 1), torch.ones(1, 1)]),), META)[0]
    assert moved.data.device == META
    assert moved.batch_sizes.device.type == "cpu"


def test_floating_dtype():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.index = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    assert floating_dtype(Mixed()) == torch.float64
    assert floating_dtype(nn.ReLU()) == torch.get_default_dtype()
