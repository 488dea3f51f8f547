"""A run with everything attached, resumed at every boundary, ends as if nothing had happened."""

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fitkit
from fitkit.core.device_capabilities import has_float64
from fitkit.testing import assert_resumes_exactly, differences

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fast_scratch")]


class Augmented(Dataset):
    """Draws from all three global generators for every sample."""

    def __init__(self, size=22):
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(size, 6, generator=generator)
        self.targets = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.inputs[index] + noise.float(), self.targets[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.4)
        self.last = nn.Linear(8, 2)

    def forward(self, inputs):
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


class Watcher(fitkit.Callback):
    """A user's own stateful callback, which also draws random numbers."""

    state_fields = ("seen", "drawn")

    def __init__(self):
        self.seen = []
        self.drawn = 0.0

    def on_train_batch_end(self, batch, logs):
        self.seen = [*self.seen, str(logs.get("loss"))]
        self.drawn += random.random() + torch.rand(()).item()

    def on_checkpoint_saved(self, path, logs):
        if not path.endswith(".boundary.pth"):
            self.seen = [*self.seen, path]


DEVICE = "cpu"


ACCELERATORS = ("accelerator", "accelerator without float64")
# Some boundaries on the CPU; with -m slow every one, on each device.
at_boundaries = pytest.mark.parametrize(
    ("device", "every"),
    [("cpu", 4), *(pytest.param(one, 1, marks=pytest.mark.slow) for one in ("cpu", *ACCELERATORS))],
    indirect=["device"],
)
on_each_device = pytest.mark.parametrize(
    "device",
    ["cpu", *(pytest.param(one, marks=pytest.mark.slow) for one in ACCELERATORS)],
    indirect=True,
)


@pytest.fixture(autouse=True)
def _on_each_device(device, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", device)
    if device != "cpu" and not has_float64(torch.device(device)):
        # torch's loss scaler computes in float64 on every device but MPS
        monkeypatch.setitem(OPTIONS, "precision", "bf16")


def make_handler(num_workers=0):
    handler = fitkit.NNHandler(Net, DEVICE, seed=11)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, interval="step", T_max=12)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_train_loader(Augmented(), batch_size=4, num_workers=num_workers)
    handler.set_val_loader(Augmented(10), batch_size=4)
    handler.auto_save(2, "auto", "model_epoch{epoch:02d}", overwrite=True)
    return handler


def make_callbacks():
    return [
        fitkit.ModelCheckpoint("batches/{global_step:03d}.pth", save_freq=3, max_to_keep=2),
        fitkit.ModelCheckpoint("best.pth", monitor="val_accuracy", save_best_only=True),
        fitkit.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        fitkit.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
        fitkit.CSVLogger("log.csv"),
        fitkit.JSONLinesLogger("log.jsonl"),
        fitkit.LearningRateMonitor(),
        Watcher(),
    ]


OPTIONS = {
    "epochs": 3,
    "gradient_accumulation_steps": 4,
    "precision": "fp16",
    "ema_decay": 0.8,
    "gradient_clipping_norm": 1.0,
}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_everything_attached_resumes_exactly_at_every_boundary(every):
    tried = assert_resumes_exactly(
        make_handler, make_callbacks=make_callbacks, every=every, **OPTIONS
    )
    events = {label.split(",")[0] for label in tried}
    assert events == {
        "on_epoch_begin",
        "on_train_batch_end",
        "on_test_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
    }


@on_each_device
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_the_number_of_workers_may_change_at_a_resume(before, after):
    counts = iter([before])
    assert_resumes_exactly(
        lambda: make_handler(num_workers=next(counts, after)),
        make_callbacks=lambda: [Watcher()],
        every=9,
        **{**OPTIONS, "epochs": 2},
    )


def own_generator():
    generator = torch.Generator().manual_seed(17)
    return DataLoader(Augmented(11), batch_size=3, shuffle=True, generator=generator)


def weighted_sampler():
    generator = torch.Generator().manual_seed(3)
    weights = torch.arange(1.0, 12.0)
    sampler = torch.utils.data.WeightedRandomSampler(weights, 11, generator=generator)
    return DataLoader(Augmented(11), batch_size=3, sampler=sampler, drop_last=True)


def stateful_loader():
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Augmented(11), batch_size=3, shuffle=True)


class Stream:
    """Batches that are drawn, of a length that nobody knows."""

    def __iter__(self):
        for _ in range(4):
            inputs = torch.randn(3, 6) + random.random()
            yield inputs, (inputs.sum(1) > 0).long()


def in_memory():
    data = Augmented(11)
    return data.inputs.numpy(), data.targets.numpy()


@pytest.mark.parametrize(
    "make_data",
    [own_generator, weighted_sampler, stateful_loader, Stream, in_memory],
    ids=lambda make: make.__name__,
)
@pytest.mark.filterwarnings("ignore:.*cannot seek:UserWarning")
@at_boundaries
def test_each_kind_of_data_resumes_exactly(make_data, every):
    def make():
        handler = make_handler()
        batch_size = {"batch_size": 3} if make_data is in_memory else {}
        handler.set_train_loader(make_data(), **batch_size)
        return handler

    assert_resumes_exactly(
        make,
        make_callbacks=lambda: [Watcher()],
        every=every,
        epochs=2,
        gradient_accumulation_steps=3,
    )


KINDS_ON_DEVICE = ("on device", "class weights")


def padded_classes():
    targets = torch.arange(22) % 2
    targets[torch.tensor([0, 3, 4, 5, 6, 7, 9, 13, 20, 21])] = -100  # the second batch has no other
    return targets


def skip_padding(handler, batch):
    inputs, targets = batch
    if bool((targets == -100).all()):
        return None
    outputs = handler.model(inputs)
    loss = nn.functional.cross_entropy(outputs, targets)
    return fitkit.StepOutput(loss, outputs, targets, weight=(targets != -100).sum())


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
@on_each_device
@pytest.mark.parametrize(
    "kind", ["on host", "step", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS_ON_DEVICE)]
)
def test_weights_of_losses_resume_exactly(kind, every, device):
    """Batches without weight and windows of unequal weights, inside an epoch and between."""
    where = device if kind == "on device" else "cpu"
    data = (Augmented().inputs.to(where), padded_classes().to(where))

    def make():
        handler = make_handler()
        if kind == "step":
            handler.set_train_step(skip_padding, evaluation_step=skip_padding)
        elif kind == "class weights":
            handler.set_loss_fn(nn.CrossEntropyLoss(torch.tensor([1.0, 5.0])))
        handler.set_train_loader(data, batch_size=4, shuffle=False)
        handler.set_val_loader(data, batch_size=4)
        return handler

    assert_resumes_exactly(make, make_callbacks=lambda: [Watcher()], every=every, **OPTIONS)


def accumulate(handler, batch):
    """Steps the optimizer after every fourth batch, so windows end in other epochs too."""
    inputs, targets = batch
    outputs = handler.model(inputs)
    loss = nn.functional.cross_entropy(outputs, targets)
    (loss / 4).backward()
    if handler.state.global_step % 4 == 3:
        handler.optimizer.step()
        handler.optimizer.zero_grad()
    return fitkit.StepOutput(loss.detach(), outputs, targets, backward=False)


@at_boundaries
def test_a_step_that_accumulates_by_itself_resumes_exactly(every):
    def make():
        handler = make_handler()
        handler.set_train_step(accumulate)
        return handler

    assert_resumes_exactly(make, make_callbacks=lambda: [Watcher()], every=every, epochs=3)


@on_each_device
def test_a_plateau_scheduler_resumes_exactly():
    def make():
        handler = make_handler()
        handler.set_scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.3)
        return handler

    assert_resumes_exactly(make, epochs=3, validate_every=2)


class SavesInItsHook(fitkit.Callback):
    """Saves by itself, before the callbacks behind it have heard the event."""

    def __init__(self, event):
        self.path = "own.pth"
        setattr(self, event, self.save_now)

    def save_now(self, *args):
        self.handler.save(self.path)


@on_each_device
@pytest.mark.parametrize(
    "event",
    ["on_epoch_begin", "on_train_batch_end", "on_test_begin", "on_test_batch_end", "on_epoch_end"],
)
def test_a_save_inside_a_hook_lets_the_others_hear_the_event_at_the_resume(
    event, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def run(resume):
        before, after = Watcher(), Watcher()
        before.name, after.name = "before", "after"
        handler = make_handler()
        handler.fit(
            epochs=1,
            callbacks=[before, SavesInItsHook(event), after, *make_callbacks()],
            progress_bar=False,
            resume=resume,
        )
        return handler.get_state_dict()

    whole = run(None)
    resumed = run("own.pth")
    assert not list(differences(whole, resumed))


def test_resuming_a_finished_run_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run():
        handler = make_handler()
        handler.fit(callbacks=make_callbacks(), progress_bar=False, resume=".", **OPTIONS)
        return handler.get_state_dict(), {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(tmp_path.rglob("*"))
            if path.is_file()
        }

    first, files = run()
    second, files_again = run()
    assert not list(differences(first, second))
    assert {path: content for path, (_, content) in files.items()} == {
        path: content for path, (_, content) in files_again.items()
    }
    checkpoints = [path for path in files if path.suffix == ".pth"]
    assert checkpoints
    assert all(files[path][0] == files_again[path][0] for path in checkpoints)


def test_an_early_stop_is_final_and_the_best_weights_come_back():
    def callbacks():
        return [
            fitkit.EarlyStopping("val_loss", patience=0, min_delta=10.0, restore_best_weights=True)
        ]

    tried = assert_resumes_exactly(make_handler, make_callbacks=callbacks, every=7, epochs=9)
    assert "on_epoch_end, epoch 1" in tried[-1]


def test_configuration_may_change_and_what_has_no_place_is_named(tmp_path):
    def run(callbacks, resume, epochs=1):
        handler = make_handler()
        handler.auto_save(None)
        handler.fit(epochs=epochs, callbacks=callbacks, progress_bar=False, resume=resume)
        return handler

    first = fitkit.EarlyStopping("val_loss", patience=5)
    saver = fitkit.ModelCheckpoint(tmp_path / "a" / "{epoch}.pth", monitor="val_loss")
    run([first, saver, Watcher()], None)
    stopper = fitkit.EarlyStopping("val_loss", patience=50)
    moved = fitkit.ModelCheckpoint(tmp_path / "b" / "{epoch}.pth", monitor="val_loss")
    added = fitkit.CSVLogger(tmp_path / "log.csv")
    with pytest.warns(UserWarning, match="not attached: 'Watcher'"):
        run([added, stopper, moved], tmp_path / "a" / "1.pth")
    assert (stopper.patience, stopper.best, stopper.wait) == (50, first.best, first.wait)
    assert moved.best == saver.best


class AllOutputs:
    """A metric over all outputs at once, in plain attributes."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.outputs, self.counts = [], np.zeros(2)

    def update(self, outputs, targets):
        self.outputs.append(outputs)
        self.counts += np.bincount(targets.cpu().numpy(), minlength=2)

    def compute(self):
        return {"spread": torch.cat(self.outputs).std(), "balance": self.counts[0] / 22}


@on_each_device
def test_metrics_that_accumulate_by_themselves_resume_exactly(device):
    torchmetrics = pytest.importorskip("torchmetrics")

    def make():
        handler = make_handler()
        handler.add_metric("all", AllOutputs())
        if device == "cpu":
            handler.add_metric("area", torchmetrics.classification.MulticlassAUROC(2))
        return handler

    tried = assert_resumes_exactly(make, make_callbacks=list, every=3, **{**OPTIONS, "epochs": 2})
    assert {label.split(",")[0] for label in tried} >= {"on_train_batch_end", "on_test_batch_end"}
