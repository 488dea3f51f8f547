"""The names, signatures and behaviours that users of the older toolkit know."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fitkit
from fitkit import Callback, CheckpointError, ModelCheckpoint, NNHandler
from fitkit.checkpointing import loading, saving
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.saving import save_multi_files, save_multi_from_single, save_single_file
from fitkit.checkpointing.trainer_saving import auto_save_epoch


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.hidden = nn.Linear(6, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


def dataset(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)
    )


@pytest.fixture
def handler(tmp_path, monkeypatch):
    """Set up as a newcomer would; relative paths go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    handler = NNHandler(model_class=Net, device="cpu", width=5)
    handler.set_optimizer(torch.optim.Adam, lr=0.01)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader(dataset(24), batch_size=8)
    handler.set_val_loader(dataset(8, 1), batch_size=8)
    return handler


def train(handler, epochs, **options):
    return handler.train(epochs=epochs, progress_bar=False, **options)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def names(function, *, skip=0):
    return list(inspect.signature(function).parameters)[skip:]


def test_the_functions_take_what_they_always_took():
    assert names(NNHandler.auto_save, skip=1)[:4] == ["interval", "save_path", "name", "overwrite"]
    assert names(save_single_file) == ["nn_handler", "state", "path"]
    assert names(save_multi_files) == ["nn_handler", "state", "path", "keys_to_save"]
    assert names(save_multi_from_single) == ["path", "keys_to_save"]
    assert names(auto_save_epoch) == [
        "nn_handler",
        "epoch",
        "total_epochs",
        "save_on_last_epoch",
        "logs",
    ]
    assert names(NNHandler.train, skip=1)[:2] == ["epochs", "validate_every"]
    assert names(ModelCheckpoint)[:7] == [
        "filepath",
        "monitor",
        "save_best_only",
        "save_weights_only",
        "mode",
        "save_freq",
        "initial_value_threshold",
    ]
    defaults = inspect.signature(NNHandler.auto_save).parameters
    assert defaults["save_path"].default == "."
    assert defaults["name"].default == "model_epoch{epoch:02d}"
    assert defaults["overwrite"].default is False


def test_a_whole_workflow(handler, tmp_path):
    handler.auto_save(
        interval=2, save_path="checkpoints", name="net_{epoch}_{val_loss:.3f}", overwrite=False
    )
    history = train(handler, 5, validate_every=1)
    handler.save("models/final.pth")
    losses = history.history["val_loss"]
    expected = [f"net_{epoch}_{losses[epoch - 1]:.3f}.pth" for epoch in (2, 4, 5)]
    assert files(tmp_path / "checkpoints") == expected

    loaded = NNHandler.load(path="models/final.pth", device="cpu")
    x = dataset(8, 1).tensors[0]
    assert torch.equal(loaded.predict(x), handler.predict(x))
    assert len(loaded.train_losses) == 5
    assert loaded.train_losses == handler.train_losses
    assert loaded.val_losses == handler.val_losses


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(2, [2, 4, 5]), (5, [5]), (7, [5]), (1, [1, 2, 3, 4, 5]), (-1, [5]), (None, []), (0, [])],
)
def test_the_interval_of_auto_save(handler, tmp_path, interval, expected):
    handler.auto_save(interval=interval, save_path="out")
    train(handler, 5)
    folder = tmp_path / "out"
    assert folder.exists() == bool(expected)
    if expected:
        assert files(folder) == [f"model_epoch{epoch:02d}.pth" for epoch in expected]


def test_save_on_last_epoch_may_be_left_out(handler, tmp_path):
    handler.auto_save(interval=2, save_path="out")
    train(handler, 5, save_on_last_epoch=False)
    assert files(tmp_path / "out") == ["model_epoch02.pth", "model_epoch04.pth"]


def test_overwrite_keeps_the_newest(handler, tmp_path):
    handler.auto_save(interval=1, save_path="out", name="m{epoch}", overwrite=True)
    train(handler, 4)
    assert files(tmp_path / "out") == ["m4.pth"]


def test_the_extension_is_appended_once(handler, tmp_path):
    handler.auto_save(interval=1, save_path="out", name="m{epoch}.pth")
    train(handler, 1)
    assert files(tmp_path / "out") == ["m1.pth"]


def test_a_name_that_is_not_logged_falls_back(handler, tmp_path):
    handler.set_val_loader(dataset(8, 1), batch_size=8)
    handler.auto_save(interval=1, save_path="out", name="m_{missing:.2f}")
    with pytest.warns(RuntimeWarning, match="missing"):
        train(handler, 2)
    written = files(tmp_path / "out")
    assert len(written) == 2
    assert all(f"epoch{n}" in name for n, name in enumerate(written, start=1))


def test_auto_save_epoch_serves_a_loop_of_one_s_own(handler, tmp_path):
    handler.auto_save(interval=2, save_path="out", name="m{epoch}_{loss:.1f}")
    logs = {"loss": 0.25}
    for epoch in range(5):
        auto_save_epoch(handler, epoch, 5, True, logs)
    assert files(tmp_path / "out") == ["m2_0.2.pth", "m4_0.2.pth", "m5_0.2.pth"]
    assert logs == {"loss": 0.25}


def test_auto_save_epoch_without_the_last(handler, tmp_path):
    handler.auto_save(interval=2, save_path="out", name="m{epoch}")
    for epoch in range(5):
        auto_save_epoch(handler, epoch, 5, False, {})
    assert files(tmp_path / "out") == ["m2.pth", "m4.pth"]


def test_auto_save_epoch_is_silent_without_auto_save(handler, tmp_path):
    auto_save_epoch(handler, 0, 1, True, {})
    assert files(tmp_path) == []


def test_an_auto_saver_may_be_added_as_a_callback(handler, tmp_path):
    handler.add_callback(AutoSaver(2, "out", "m{epoch}", True))
    train(handler, 4)
    assert files(tmp_path / "out") == ["m4.pth"]


def test_a_run_goes_on_from_an_auto_save(handler, tmp_path):
    handler.auto_save(interval=1, save_path="out")
    train(handler, 2)
    loaded = NNHandler.load(path="out/model_epoch02.pth", device="cpu")
    assert len(loaded.train_losses) == 2
    loaded.set_train_loader(dataset(24), batch_size=8)
    loaded.set_val_loader(dataset(8, 1), batch_size=8)
    loaded.auto_save(interval=1, save_path="out")
    assert train(loaded, 1).epoch == [0, 1, 2]
    assert files(tmp_path / "out")[-1] == "model_epoch03.pth"


def test_saving_to_a_single_file(handler, tmp_path):
    train(handler, 1)
    state = handler.get_state_dict()
    keys = list(state)
    save_single_file(handler, state, "deep/down/model.pth")
    assert list(state) == keys
    saved = torch.load(tmp_path / "deep/down/model.pth", weights_only=True)
    assert sorted(saved) == sorted(keys)
    assert torch.equal(
        saved["model_state_dict"]["out.bias"], handler.module.state_dict()["out.bias"]
    )
    assert NNHandler.load("deep/down/model.pth").module.hidden.out_features == 5


@pytest.mark.parametrize("way", ["from state", "from file"])
def test_saving_to_several_files(handler, tmp_path, way):
    train(handler, 1)
    state = handler.get_state_dict()
    if way == "from state":
        save_multi_files(handler, state, "models/net.pth")
    else:
        handler.save("models/net.pth")
        save_multi_from_single("models/net.pth")
        (tmp_path / "models/net.pth").unlink()
    assert files(tmp_path / "models") == [
        "net_model_kwargs.pth",
        "net_model_state_dict.pth",
        "net_optimizer_state_dict.pth",
    ]
    weights = torch.load(tmp_path / "models/net_model_state_dict.pth", weights_only=True)
    assert weights.keys() == handler.module.state_dict().keys()
    assert torch.load(tmp_path / "models/net_model_kwargs.pth", weights_only=True) == {"width": 5}

    other = NNHandler.initialize_from_checkpoint(
        "models/net_model_state_dict.pth", Net, device="cpu", width=5
    )
    assert torch.equal(other.module.out.weight, handler.module.out.weight)


def test_chosen_keys_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = NNHandler(Net, "cpu", seed=3, width=5)
    state = handler.get_state_dict()
    save_multi_files(
        handler, state, "net.pth", keys_to_save=["model_kwargs", "scheduler_state_dict"]
    )
    assert files(tmp_path) == ["net_model_kwargs.pth", "net_scheduler_state_dict.pth"]
    saved = torch.load(tmp_path / "net_model_kwargs.pth", weights_only=True)
    assert saved == {"width": 5, "seed": 3}
    assert state["model_kwargs"] == {"width": 5}


def test_an_unknown_key_writes_nothing(handler, tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'model_state_dict'"):
        save_multi_files(
            handler, handler.get_state_dict(), "m.pth", keys_to_save=["seed", "model_state_dic"]
        )
    assert files(tmp_path) == []


def test_the_modules_hold_the_verbs():
    assert loading.load is not None
    assert loading.initialize_from_checkpoint is not None
    assert callable(saving.save_single_file)
    assert fitkit.NNHandler.LoggingMode.CONSOLE.value == "console"
    assert {member.name for member in NNHandler.LoggingMode} == {"CONSOLE", "FILE", "BOTH"}


def test_the_functions_of_the_loading_module(handler):
    handler.save("m.pth")
    loaded = loading.load("m.pth", device="cpu")
    assert isinstance(loaded, NNHandler)
    bare = loading.initialize_from_checkpoint("m.pth", Net, device="cpu", width=5)
    assert bare.optimizer is None
    assert torch.equal(bare.module.out.weight, loaded.module.out.weight)


def test_model_checkpoint_keeps_the_best(handler, tmp_path):
    handler.add_callback(
        ModelCheckpoint(
            filepath="best/net.pth",
            monitor="val_loss",
            save_best_only=True,
            save_weights_only=False,
            mode="min",
        )
    )
    train(handler, 4)
    best = NNHandler.load("best/net.pth")
    assert best.val_losses[-1] == min(handler.val_losses)


def test_model_checkpoint_by_epoch_and_by_batch(handler, tmp_path):
    handler.add_callback(ModelCheckpoint("a/epoch_{epoch:03d}.pth", save_freq="epoch"))
    handler.add_callback(
        ModelCheckpoint("b/{global_step:06d}.pth", save_weights_only=True, save_freq=4)
    )
    train(handler, 3)
    assert files(tmp_path / "a") == [f"epoch_{n:03d}.pth" for n in (1, 2, 3)]
    assert files(tmp_path / "b") == ["000004.pth", "000008.pth"]
    weights = torch.load(tmp_path / "b/000008.pth", weights_only=True)
    assert weights.keys() == handler.module.state_dict().keys()


def test_a_callback_of_the_older_kind_is_carried_over(handler):
    """A state of its own, ``super().__init__()``, hooks with a default for the logs."""

    class Counts(Callback):
        def __init__(self):
            super().__init__()
            self.batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1

        def state_dict(self):
            return {"batches": self.batches}

        def load_state_dict(self, state_dict):
            self.batches = state_dict.get("batches", 0)

    handler.add_callback(Counts())
    train(handler, 2)
    handler.save("m.pth")
    loaded = NNHandler.load("m.pth")
    counts = Counts()
    loaded.add_callback(counts)
    assert counts.batches == 6


def test_parts_may_be_left_out_when_loading(handler):
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1)
    train(handler, 2)
    handler.save("m.pth")
    assert NNHandler.load("m.pth").scheduler is not None
    assert NNHandler.load("m.pth", skip_optimizer=True).optimizer is None
    assert NNHandler.load("m.pth", skip_scheduler=True).scheduler is None
    assert NNHandler.load("m.pth", skip_history=True).train_losses == []
