"""Copies, random streams and sampling on an accelerator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fitkit import NNHandler
from fitkit.generative import VPSDE
from fitkit.runtime.device import resolve_device, to_device
from fitkit.runtime.rng import capture_streams, restore_streams, seed_streams, seeded_streams
from fitkit.testing import differences

CPU, SIM = torch.device("cpu"), torch.device("sim:0")


# ---- copies -------------------------------------------------------------------------------------


def test_a_copy_to_the_host_is_waited_for(accelerator):
    """A handler on the CPU with data on a device would compute with memory that is not filled."""
    batch = {"x": torch.ones(3, device="sim"), "y": (torch.zeros(2, device="sim"), "name")}
    moved = to_device(batch, CPU)
    assert moved["x"].tolist() == [1.0] * 3
    assert moved["y"][0].tolist() == [0.0] * 2
    assert accelerator.copies == []
    assert len(accelerator.waits) == 2


def test_only_pinned_memory_is_copied_without_waiting(accelerator):
    to_device((torch.ones(3).pin_memory(), torch.ones(2)), SIM)
    assert [(way, pinned) for way, pinned, _ in accelerator.copies] == [("to the device", True)]
    assert [kind for kind, _ in accelerator.waits] == ["copy to the device"]


def test_where_such_copies_are_not_possible_all_of_them_wait(accelerator, monkeypatch):
    monkeypatch.setattr("fitkit.core.device_capabilities.WITH_ASYNC_COPIES", ("cuda", "xpu"))
    to_device((torch.ones(3).pin_memory(), torch.ones(2)), SIM)
    assert accelerator.copies == []
    assert len(accelerator.waits) == 2


def test_packed_sequences_and_what_moves_itself(accelerator):
    class Graph:
        def to(self, device):
            return ("moved", device)

    packed = pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    moved = to_device((packed, Graph(), 3), SIM)
    assert moved[0].data.device == SIM
    assert moved[0].batch_sizes.device == CPU
    assert moved[1:] == (("moved", SIM), 3)


def test_a_handler_on_the_cpu_with_data_on_the_device(accelerator):
    x, y = torch.randn(40, 8), torch.randint(3, (40,))
    found = []
    for data in ((x, y), (x.to("sim"), y.to("sim"))):
        handler = make_handler(device="cpu")
        handler.fit(data, epochs=2, batch_size=4, progress_bar=False)
        found.append(handler.history.history["loss"])
    assert found[0] == found[1]


def make_handler(device="sim", dropout=0.0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Linear(8, 16), nn.Dropout(dropout), nn.Linear(16, 3)]
    handler = NNHandler(nn.Sequential(*layers), device, seed=seed)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


def test_the_name_with_and_without_index_is_one_device(accelerator):
    assert resolve_device("sim") == SIM
    handler = make_handler("sim")
    assert handler.device == SIM
    batch = (torch.ones(2, device="sim"), torch.ones(2, device="sim:0"))
    assert to_device(batch, handler.device)[0] is batch[0]
    assert accelerator.waits[-1:] == [] or "nothing moved"


def test_a_named_index_becomes_the_current_device(accelerator):
    make_handler("sim:1")
    assert torch.sim.current_device() == 1
    assert torch.ones(2, device="sim").device == torch.device("sim:1")
    first = make_handler("sim:0")
    make_handler("sim:1")
    first.predict(torch.randn(2, 8))
    assert torch.sim.current_device() == 0, "a handler works on its own"


# ---- random streams -----------------------------------------------------------------------------


def streams_of_devices():
    return [torch.sim.get_rng_state(f"sim:{index}") for index in range(2)]


def test_a_handler_s_seed_leaves_the_streams_of_the_program_alone(accelerator):
    x, y = torch.randn(20, 8), torch.randint(3, (20,))
    before = streams_of_devices()
    for device in ("cpu", "sim"):
        handler = make_handler(device, dropout=0.5)
        handler.fit((x, y), epochs=2, batch_size=4, validation_split=0.2, progress_bar=False)
        handler.evaluate((x, y))
        handler.predict(x)
        handler.summary(x)
        handler.fit((x, y), fast_dev_run=True, progress_bar=False)
        for one, other in zip(before, streams_of_devices(), strict=True):
            assert torch.equal(one, other), device


def test_a_handler_s_seed_decides_what_is_drawn_on_the_device(accelerator):
    x, y = torch.randn(20, 8), torch.randint(3, (20,))
    losses = []
    for seed in (1, 2, None, None):
        torch.manual_seed(0)
        torch.sim.manual_seed_all(len(losses))
        handler = make_handler(dropout=0.5, seed=7 if seed else None)
        handler.module[0].weight.data.fill_(0.1)
        handler.fit((x, y), shuffle=False, progress_bar=False)
        losses.append(handler.history.history["loss"])
    assert losses[0] == losses[1]
    assert losses[2] != losses[3], "without a seed the program's stream decides"


def test_a_model_that_is_made_on_the_device_follows_from_the_seed(accelerator):
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, device="sim"))

    before = streams_of_devices()
    first = NNHandler(Made, "sim", seed=3).module.weight
    torch.sim.manual_seed_all(99)
    between = streams_of_devices()
    assert torch.equal(first, NNHandler(Made, "sim", seed=3).module.weight)
    assert torch.equal(between[0], torch.sim.get_rng_state("sim:0"))
    assert not torch.equal(before[0], between[0])


def test_streams_are_put_back_by_role_and_not_by_index(accelerator):
    seed_streams(5, torch.device("sim:0"))
    state = capture_streams(torch.device("sim:0"))
    expected = torch.randn(3, device="sim:0").tolist()
    untouched = torch.sim.get_rng_state("sim:0")
    restore_streams(state, torch.device("sim:1"))
    assert torch.randn(3, device="sim:1").tolist() == expected
    assert torch.equal(torch.sim.get_rng_state("sim:0"), untouched)


def test_a_checkpoint_of_several_devices_by_index_is_read(accelerator):
    """As fitkit 0.1 wrote it where there were several CUDA devices."""
    states = [torch.Generator().manual_seed(index).get_state() for index in range(2)]
    state = {**capture_streams(), "devices": states, "device": "sim"}
    restore_streams(state, torch.device("sim:1"))
    assert torch.equal(torch.sim.get_rng_state("sim:1"), states[1])


def test_only_the_device_in_use_is_captured(accelerator):
    assert capture_streams(CPU)["devices"] == []
    assert "device" not in capture_streams(CPU)
    assert len(capture_streams(SIM)["devices"]) == 1


def test_seeded_streams_leave_no_trace_on_the_device(accelerator):
    before = streams_of_devices()
    drawn = []
    for _ in range(2):
        with seeded_streams(3, SIM):
            drawn.append(torch.randn(2, device="sim").tolist())
    assert drawn[0] == drawn[1]
    assert all(torch.equal(a, b) for a, b in zip(before, streams_of_devices(), strict=True))


# ---- drawing ------------------------------------------------------------------------------------


class Score(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, t, x):
        return self.scale * x


@pytest.mark.parametrize("method", ["ode", "euler_maruyama", "predictor_corrector"])
def test_samples_and_likelihoods(method, accelerator):
    handler = NNHandler(Score, "sim", model_type="score_based", seed=0)
    handler.set_sde(VPSDE, divide_by_std=False)
    steps = {} if method == "ode" else {"steps": 5}
    options = {"method": method, "progress_bar": False, "seed": 3, **steps}
    first, second = (handler.sample((4, 2), **options) for _ in range(2))
    assert first.device == SIM
    assert first.dtype is torch.float32
    assert torch.equal(first, second)
    density = handler.log_likelihood(first, progress_bar=False, seed=1)
    assert density.shape == (4,)
    on_cpu = NNHandler(Score, "cpu", model_type="score_based", seed=0)
    on_cpu.set_sde(VPSDE, divide_by_std=False)
    same = on_cpu.log_likelihood(first.cpu(), progress_bar=False, num_probes=None)
    exact = handler.log_likelihood(first, progress_bar=False, num_probes=None)
    assert exact.cpu().tolist() == pytest.approx(same.tolist(), rel=1e-5)


def test_trial_runs_on_the_device(accelerator):
    x, y = torch.randn(40, 8), torch.randint(3, (40,))
    handler = make_handler()
    before = handler.get_state_dict()
    assert len(handler.find_learning_rate((x, y), num_steps=6, batch_size=4).losses) > 1
    assert handler.find_batch_size((x, y), max_size=8) == 8
    assert not list(differences(before, handler.get_state_dict()))
