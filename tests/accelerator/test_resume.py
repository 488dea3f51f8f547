"""On an accelerator: a run that is resumed ends bit for bit as the uninterrupted one.

At every boundary the exact-resume suites do it, with the fixture ``device``.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit.core.tree import iterate_tensors
from fitkit.handler.optimizer_state import load_optimizer
from fitkit.metrics.running_sum import RunningSum
from fitkit.metrics.weighted_mean import WeightedMean
from fitkit.testing import assert_resumes_exactly, differences

torchmetrics = pytest.importorskip("torchmetrics")

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fast_scratch")]

# One kind of accelerator and some boundaries; with -m slow both kinds and more boundaries.
by_accelerator = pytest.mark.parametrize(
    ("accelerator", "every"),
    [
        ("float64", 6),
        *(pytest.param(kind, 2, marks=pytest.mark.slow) for kind in ("float64", "no float64")),
    ],
    indirect=["accelerator"],
)
by_accelerator_too = pytest.mark.parametrize(
    "accelerator", ["float64", pytest.param("no float64", marks=pytest.mark.slow)], indirect=True
)

SIM = torch.device("sim:0")
generator = torch.Generator().manual_seed(0)
X, CLASSES = torch.randn(40, 8, generator=generator), torch.randint(3, (40,), generator=generator)
# far from zero: what is lost in float32 shows
VALUES = 2000 + torch.randn(40, 3, generator=generator)


def make_handler(metrics=(), *, values=False, optimizer=torch.optim.AdamW, device="sim", **options):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3)]
    handler = fitkit.NNHandler(nn.Sequential(*layers), device, seed=0)
    handler.set_optimizer(optimizer, **{"lr": 1e-2, **options})
    handler.set_loss_fn(nn.MSELoss() if values else nn.CrossEntropyLoss())
    for number, metric in enumerate(metrics):
        handler.add_metric(f"m{number}", metric)
    targets = VALUES if values else CLASSES
    handler.set_train_loader((X, targets), batch_size=4)
    handler.set_val_loader((X[:10], targets[:10]), batch_size=4)
    return handler


# ---- metrics ------------------------------------------------------------------------------------


class MeanOutput(fitkit.Metric):
    """As the docstring of ``fitkit.Metric`` shows it."""

    def update(self, outputs, targets):
        return outputs.sum(), outputs.numel()

    def compute(self, sums):
        return sums[0] / sums[1]


class MeanOutputInTensors(MeanOutput):
    """The same in the way of people who think of the CPU."""

    def update(self, outputs, targets):
        return torch.stack([outputs.sum(), torch.tensor(float(outputs.numel()))])


class OnTheHost(MeanOutput):
    def update(self, outputs, targets):
        values = outputs.detach().cpu() * torch.ones(3)
        return torch.stack([values.sum(), torch.tensor(float(values.numel()))])


class Weighted(fitkit.MeanMetric):
    """A mean whose values need a tensor that the metric makes."""

    def values(self, outputs, targets):
        return outputs * torch.tensor([1.0, 2.0, 3.0])


class MixedDevices(MeanOutput):
    def update(self, outputs, targets):
        return outputs.sum(), torch.tensor(2.0, device="cpu"), 3


class Counted:
    """Accumulates by itself, on the device, without being a module."""

    classes = None

    def reset(self):
        self.classes = None

    def update(self, outputs, targets):
        found = torch.nn.functional.one_hot(outputs.argmax(1), 3).sum(0)
        self.classes = found if self.classes is None else self.classes + found

    def compute(self):
        return float(self.classes[0])

    def state_dict(self):
        return {"classes": self.classes, "number": 3, "host": torch.ones(2)}

    def load_state_dict(self, state):
        assert state["host"].device.type == "cpu"
        self.classes = state["classes"]


FOR_CLASSES = {
    "Accuracy": fitkit.Accuracy,
    "TopKAccuracy": lambda: fitkit.TopKAccuracy(2),
    "documented": MeanOutput,
    "of tensors": MeanOutputInTensors,
    "on the host": OnTheHost,
    "of two devices": MixedDevices,
    "a mean with a tensor": Weighted,
    "a function of tensors": lambda: lambda outputs, targets: outputs.softmax(1).amax(1).mean(),
    "a function of several numbers": lambda: lambda outputs, targets: outputs.softmax(1).mean(0),
    "EpochMetric": lambda: fitkit.EpochMetric(lambda o, t: o[t == 1].double().std().nan_to_num()),
    "a function of numbers": lambda: lambda outputs, targets: float(outputs.detach().mean()),
    "torchmetrics": lambda: torchmetrics.classification.MulticlassF1Score(3),
    "torchmetrics with lists": lambda: torchmetrics.CatMetric(),
    "one that accumulates": Counted,
}
FOR_VALUES = {
    "MeanSquaredError": fitkit.MeanSquaredError,
    "MeanAbsoluteError": fitkit.MeanAbsoluteError,
    "R2Score": fitkit.R2Score,
}


class LastClass(torchmetrics.CatMetric):
    def update(self, outputs, targets):
        super().update(outputs[:, -1])

    def compute(self):
        return super().compute().sum()


FOR_CLASSES["torchmetrics with lists"] = LastClass


@by_accelerator
@pytest.mark.parametrize("name", [*FOR_CLASSES, *FOR_VALUES])
def test_with_each_metric(name, accelerator, every):
    make = {**FOR_CLASSES, **FOR_VALUES}[name]
    handler = partial(make_handler, [make()], values=name in FOR_VALUES)
    assert_resumes_exactly(handler, epochs=1, every=every)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [64, *(pytest.param(n, marks=pytest.mark.slow) for n in (63, 65, 129))]
)
def test_cuts_where_sums_are_folded(count, accelerator, tmp_path):
    """One step before, at and after a fold of 64 batches, with all metrics at once."""
    x, y = torch.randn(140, 8), torch.randint(3, (140,))

    def run(resume, steps):
        handler = make_handler([make() for make in FOR_CLASSES.values()])
        saver = fitkit.ModelCheckpoint(str(tmp_path / "{global_step}.pth"), save_freq=count)
        options = {"batch_size": 1, "max_steps": steps, "progress_bar": False, "resume": resume}
        handler.fit((x[:, :8], y), callbacks=[saver, Frozen()], **options)
        return handler.get_state_dict()

    whole = run(None, None)
    resumed = run(tmp_path / f"{count}.pth", None)
    assert not list(differences(whole, resumed))


class Frozen(fitkit.Callback):
    """Batches of one sample: batch norm in evaluation mode."""

    def on_epoch_begin(self, epoch, logs):
        self.model[1].eval()

    def on_train_begin(self, logs):
        self.model[1].eval()


def test_numbers_are_those_of_the_cpu(accelerator):
    """Without dropout, whose masks are drawn elsewhere, not a bit differs with float64."""
    for values in (False, True):
        found = {}
        for device in ("cpu", "sim"):
            kinds = FOR_VALUES if values else FOR_CLASSES
            handler = make_handler(
                [make() for make in kinds.values()], values=values, device=device
            )
            handler.module[2].p = 0.0
            handler.fit(epochs=2, progress_bar=False, ema_decay=0.9, gradient_clipping_norm=1.0)
            found[device] = handler.history.history
        if accelerator.float64:
            assert found["sim"] == found["cpu"]
        for name, column in found["cpu"].items():
            assert found["sim"][name] == pytest.approx(column, rel=2e-6), name


# ---- optimizers ---------------------------------------------------------------------------------

OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax", "ASGD",
              "RMSprop", "Rprop", "Adafactor"]  # fmt: skip


@by_accelerator
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("Adam", "SGD") else pytest.mark.slow) for n in OPTIMIZERS],
)
def test_with_each_optimizer(name, accelerator, every):
    kind = getattr(torch.optim, name)
    assert_resumes_exactly(lambda: make_handler(optimizer=kind), epochs=1, every=every)


FLAGS = {"plain": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}


@by_accelerator
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4},
        pytest.param({"precision": "fp16"}, marks=pytest.mark.slow),
        pytest.param({"ema_decay": 0.9}, marks=pytest.mark.slow),
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_windows_scaler_and_average(flags, options, accelerator, every):
    if "precision" in options and not accelerator.float64:
        options = {"precision": "bf16"}  # torch's scaler needs float64 on every device but MPS
    handler = partial(make_handler, **FLAGS[flags])
    assert_resumes_exactly(handler, epochs=2, every=3 * every, **options)


@by_accelerator_too
@pytest.mark.parametrize("saved", FLAGS)
@pytest.mark.parametrize("own", FLAGS)
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "state in memory"])
def test_the_step_counter_is_where_the_program_s_optimizer_wants_it(
    saved, own, in_memory, accelerator, tmp_path
):
    handler = make_handler(**FLAGS[saved])
    handler.fit(epochs=1, progress_bar=False)
    handler.save(tmp_path / "saved.pth")
    again = make_handler(**FLAGS[own])
    if in_memory:
        load_optimizer(again.optimizer, handler.optimizer.state_dict())
    else:
        again.fit(epochs=2, progress_bar=False, resume=tmp_path / "saved.pth")
    fresh = make_handler(**FLAGS[own])
    fresh.fit(epochs=1, progress_bar=False)
    for parameter, other in zip(again.module.parameters(), fresh.module.parameters(), strict=True):
        found, expected = again.optimizer.state[parameter], fresh.optimizer.state[other]
        assert {name: one.device for name, one in found.items()} == {
            name: one.device for name, one in expected.items()
        }
    group = again.optimizer.param_groups[0]
    assert (bool(group["fused"]), bool(group["capturable"])) == (
        own == "fused",
        own == "capturable",
    )


def test_a_learning_rate_in_a_tensor_stays_on_the_device(accelerator, tmp_path):
    def make():
        handler = make_handler(capturable=True, lr=torch.tensor(0.01, device="sim"))
        handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
        return handler

    assert_resumes_exactly(make, epochs=2, every=8)
    handler, again = make(), make()
    handler.fit(epochs=1, progress_bar=False)
    handler.save(tmp_path / "saved.pth")
    again.fit(epochs=2, progress_bar=False, resume=tmp_path / "saved.pth")
    assert again.optimizer.param_groups[0]["lr"].device == SIM
    own = handler.scheduler.state_dict()
    found = {name: devices_in(value) for name, value in again.scheduler.state_dict().items()}
    assert found == {name: devices_in(value) for name, value in own.items()}
    assert SIM in found["base_lrs"]


def devices_in(value):
    return [one.device for one in iterate_tensors(value)]


class Odd(torch.optim.Optimizer):
    """A user's own, whose state is in no form that torch knows."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                state = self.state[one]
                if not state:
                    state["step"] = torch.zeros(2, device=one.device)
                    state["number"], state["nothing"] = 0, None
                state["step"] += 1
                state["number"] += 1
                one.sub_(one.grad * group["lr"] / state["step"].sum())


def test_with_an_optimizer_of_one_s_own(accelerator):
    assert_resumes_exactly(partial(make_handler, optimizer=Odd), epochs=1, every=3)


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adam", "Adagrad"])
def test_a_resumed_optimizer_waits_no_more_than_a_fresh_one(name, accelerator, tmp_path):
    def waits(resume, epochs):
        handler = make_handler(optimizer=getattr(torch.optim, name))
        accelerator.waits.clear()
        handler.fit(epochs=epochs, progress_bar=False, resume=resume)
        handler.save(tmp_path / "saved.pth")
        return sum(kind == "_local_scalar_dense" for kind, _ in accelerator.waits)

    fresh = waits(None, 1)
    assert waits(tmp_path / "saved.pth", 2) <= fresh + 1


# ---- callbacks ----------------------------------------------------------------------------------


class Keeps(fitkit.Callback):
    """A user's own callback: tensors of the device, and tensors of the host."""

    state_fields = ("sums", "recent", "nested", "on_host")

    def __init__(self):
        self.sums = None
        self.recent = deque(maxlen=3)
        self.nested = {"inner": [], "number": 3}
        self.on_host = torch.zeros(3)

    def on_train_batch_end(self, batch, logs):
        weights = self.model[0].weight.detach().sum(0)
        self.sums = weights if self.sums is None else self.sums + weights
        self.recent.append(weights * 2)
        self.nested["inner"] = [*self.nested["inner"][-1:], torch.stack([*self.recent]).mean(0)]
        self.on_host = self.on_host + weights[:3].cpu()


class KeepsInItsOwnWay(Keeps):
    state_fields = ()

    def state_dict(self):
        return {name: getattr(self, name) for name in Keeps.state_fields}

    def load_state_dict(self, state):
        vars(self).update(state)


@pytest.mark.parametrize("kind", [Keeps, KeepsInItsOwnWay])
def test_a_callback_s_tensors_come_back_where_they_were(kind, accelerator):
    assert_resumes_exactly(make_handler, make_callbacks=lambda: [kind()], epochs=2, every=8)


def test_the_state_of_a_callback_that_is_not_attached_takes_no_memory_of_the_device(
    accelerator, tmp_path
):
    handler = make_handler()
    handler.fit(epochs=1, progress_bar=False, callbacks=[Keeps()])
    handler.save(tmp_path / "saved.pth")
    again, kept = make_handler(), Keeps()
    with pytest.warns(UserWarning, match="not attached"):
        again.fit(epochs=2, progress_bar=False, resume=tmp_path / "saved.pth")
    devices = devices_in(again.callbacks.unclaimed["Keeps"]["state"])
    assert len(devices) == 7
    assert set(devices) == {torch.device("cpu")}
    again.save(tmp_path / "again.pth")
    third = make_handler()
    third.fit(epochs=3, progress_bar=False, callbacks=[kept], resume=tmp_path / "again.pth")
    assert kept.sums.device == SIM


# ---- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_data",
    [
        lambda: {"train_data": (X.to("sim"), CLASSES.to("sim")), "batch_size": 4},
        lambda: {"train_data": (X.to("sim"), CLASSES), "batch_size": 4},
        lambda: {
            "train_data": DataLoader(TensorDataset(X, CLASSES), 4, shuffle=True, pin_memory=True)
        },
        lambda: {"train_data": [(X[i : i + 4], CLASSES[i : i + 4]) for i in range(0, 40, 4)]},
    ],
    ids=["on the device", "half of it", "pinned loader", "batches"],
)
@pytest.mark.filterwarnings("ignore:.*cannot seek:UserWarning")
@by_accelerator
def test_with_each_kind_of_data(make_data, accelerator, every):
    handler = partial(make_handler, [fitkit.Accuracy()])
    assert_resumes_exactly(handler, epochs=2, every=3 * every, **make_data())


# ---- several devices, other devices -------------------------------------------------------------


class Draws(nn.Module):
    """Draws on the device, without a backward pass, which the simulation has on the first alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def make_drawing(device):
    handler = fitkit.NNHandler(Draws, device, seed=5)

    def step(handler, batch):
        with torch.no_grad():
            handler.module.weight += torch.randn_like(handler.module.weight)
        return fitkit.StepOutput(handler.module.weight.sum(), backward=False)

    handler.set_train_step(step)
    handler.set_train_loader((X,), batch_size=4)
    return handler


@pytest.mark.parametrize(("first", "second"), [("sim:0", "sim:1"), ("sim:1", "sim:0")])
def test_a_run_goes_on_on_a_device_of_another_index(first, second, accelerator, tmp_path):
    whole = make_drawing(second)
    whole.fit(epochs=2, progress_bar=False)
    begun, rest = make_drawing(first), make_drawing(second)
    for handler, epochs, resume in ((begun, 1, None), (rest, 2, tmp_path / "4.pth")):
        saver = fitkit.ModelCheckpoint(str(tmp_path / "{global_step}.pth"), save_freq=4)
        handler.fit(epochs=epochs, progress_bar=False, callbacks=[saver], resume=resume)
    assert rest.device == torch.device(second) == rest.module.weight.device
    assert torch.sim.current_device() == torch.device(second).index
    assert torch.equal(rest.module.weight.cpu(), whole.module.weight.cpu())


@by_accelerator_too
@pytest.mark.parametrize("kind", [*FOR_VALUES, "documented", "of tensors", "a mean with a tensor"])
@pytest.mark.parametrize(("first", "second"), [("sim", "cpu"), ("cpu", "sim")])
def test_an_epoch_begun_on_another_kind_of_device_is_added_up(
    kind, first, second, accelerator, tmp_path
):
    """The parts of an epoch add up to the whole, whichever device gave them."""
    found = {}
    for device, resume in ((first, None), (second, tmp_path / "4.pth")):
        make = {**FOR_CLASSES, **FOR_VALUES}[kind]
        handler = make_handler([make()], values=kind in FOR_VALUES, device=device, lr=0.0)
        handler.module[2].p = 0.0
        saver = fitkit.ModelCheckpoint(str(tmp_path / "{global_step}.pth"), save_freq=4)
        handler.fit(epochs=1, progress_bar=False, callbacks=[saver], resume=resume)
        found[device] = handler.history.history["m0"]
    assert found[first] == pytest.approx(found[second], rel=1e-5)


def test_from_the_device_to_the_cpu_and_back(accelerator, tmp_path, caplog):
    path = tmp_path / "saved.pth"
    for epochs, device in enumerate(("sim", "cpu", "sim"), start=1):
        metrics = [fitkit.Accuracy(), torchmetrics.classification.MulticlassF1Score(3)]
        handler = make_handler(metrics, device=device)
        saver = fitkit.ModelCheckpoint(str(path), save_freq=7)  # inside an epoch
        resume = path if path.exists() else None
        handler.fit(epochs=epochs, progress_bar=False, resume=resume, callbacks=[saver])
        assert handler.module[0].weight.device.type == device
        assert len(handler.history.epoch) == epochs
    said = [r.getMessage() for r in caplog.records if "the checkpoint was saved on" in r.message]
    assert [line.split(":")[0] for line in said] == [
        "the checkpoint was saved on sim and the run goes on on cpu",
        "the checkpoint was saved on cpu and the run goes on on sim",
    ]


def test_going_on_on_another_kind_of_device_draws_what_the_checkpoint_decides(
    accelerator, tmp_path
):
    handler = make_handler(device="cpu")
    handler.fit(epochs=1, progress_bar=False)
    handler.save(tmp_path / "cpu.pth")
    ends = []
    for seed in (1, 2):
        torch.sim.manual_seed_all(seed)
        again = make_handler()
        again.fit(epochs=2, progress_bar=False, resume=tmp_path / "cpu.pth")
        ends.append(again.get_state_dict())
    assert not list(differences(*ends))


def test_sums_that_an_earlier_version_saved_in_float64_go_on(accelerator):
    """fitkit 0.1 wrote the values that wait to be added as float64, whatever they had been."""
    mean = WeightedMean()
    waiting = torch.tensor([0.25, 0.5], dtype=torch.float64)
    total = torch.tensor(3.0, dtype=torch.float64)
    mean.load_state_dict({"total": total, "weight": 4, "waiting": waiting, "weights": [1, 2]})
    for _ in range(70):
        mean.add(torch.tensor(1.0, device="sim"), 1)
    found, weight = mean.sums()
    assert (float(found), weight) == (3.0 + 0.25 + 1.0 + 70.0, 77)


def test_rows_of_the_device_and_of_the_host_are_each_added_once(accelerator):
    rows = RunningSum(at_once=True)
    rows.load(torch.tensor(1.0, dtype=torch.float64), torch.tensor([2.0, 4.0]))
    for number, device in enumerate(("sim", "sim", "cpu", "sim", "cpu", "cpu"), start=3):
        rows.add(torch.tensor(2.0**number, device=device))
    assert float(rows.total()) == 7.0 + sum(2.0**number for number in range(3, 9))
