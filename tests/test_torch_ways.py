"""What users of plain torch expect to work."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from fitkit import Callback, NNHandler, StepOutput


def samples(size=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 3, generator=generator)
    return x, (x[:, 0] > 0).long()


class Seen(nn.Module):
    """A linear classifier that records the samples it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.batches = []

    def forward(self, x):
        if self.training:
            self.batches.append(x.detach().clone())
        return self.layer(x)


def make(model=None, **kwargs):
    handler = NNHandler(Seen() if model is None else model, "cpu", seed=0, **kwargs)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


def fit(handler, data=None, **options):
    return handler.fit(data, **{"progress_bar": False, **options})


# ---- loaders ------------------------------------------------------------------------------------


def test_a_loader_is_used_as_it_is():
    x, y = samples()
    loader = DataLoader(TensorDataset(x, y), batch_size=5, drop_last=True)
    handler = make()
    fit(handler, loader)
    assert [len(batch) for batch in handler.module.batches] == [5, 5, 5, 5]
    assert torch.equal(torch.cat(handler.module.batches), x[:20])


def test_a_loader_s_generator_decides_as_in_a_plain_loop():
    x, y = samples()

    def loader():
        generator = torch.Generator().manual_seed(4)
        return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, generator=generator)

    plain = loader()
    expected = [inputs for _ in range(3) for inputs, _ in plain]
    handler = make()
    fit(handler, loader(), epochs=3)
    assert all(map(torch.equal, handler.module.batches, expected))


class Backwards(Sampler[int]):
    def __init__(self, size):
        self.size = size
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(range(self.size - 1, -1, -1))

    def __len__(self):
        return self.size


def test_a_sampler_of_one_s_own():
    x, y = samples()
    sampler = Backwards(24)
    handler = make()
    fit(handler, DataLoader(TensorDataset(x, y), batch_size=8, sampler=sampler), epochs=2)
    assert torch.equal(torch.cat(handler.module.batches[:3]), x.flip(0))
    assert sampler.epochs == [0, 1]


def test_a_batch_sampler_of_one_s_own():
    x, y = samples()
    batches = [[0, 1], [5], [2, 3, 4]]
    handler = make()
    fit(handler, DataLoader(TensorDataset(x, y), batch_sampler=batches))
    assert [len(batch) for batch in handler.module.batches] == [2, 1, 3]
    assert handler.state.samples_seen == 6


def test_a_sampler_passed_to_set_train_loader():
    x, y = samples()
    sampler = WeightedRandomSampler([1.0] + [0.0] * 23, 12)
    handler = make()
    handler.set_train_loader(TensorDataset(x, y), batch_size=4, sampler=sampler)
    fit(handler)
    assert torch.equal(torch.cat(handler.module.batches), x[:1].expand(12, 3))


def test_a_collate_function_of_one_s_own():
    class Words(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(index + 1), index % 2

    def pad(rows):
        inputs = nn.utils.rnn.pad_sequence([row for row, _ in rows], batch_first=True)
        return {"inputs": inputs, "lengths": torch.tensor([len(r) for r, _ in rows])}, torch.tensor(
            [label for _, label in rows]
        )

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, inputs, lengths):
            return self.layer((inputs.sum(1) / lengths).unsqueeze(1))

    handler = make(Sums())
    loader = DataLoader(Words(), batch_size=4, collate_fn=pad)
    history = fit(handler, loader, validation_data=loader)
    assert len(history.history["val_loss"]) == 1
    assert handler.predict(loader).shape == (6, 2)


def test_workers():
    x, y = samples()
    handler = make()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, num_workers=2)
    fit(handler, loader, validation_data=loader)
    assert torch.equal(torch.cat(handler.module.batches), x)


class Augments(Dataset):
    """Draws from every global stream, as augmentations do."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return torch.full((3,), noise), index % 2


def test_augmentation_depends_neither_on_workers_nor_on_the_program():
    runs = []
    for workers, noise in ((0, 1), (2, 2)):
        torch.manual_seed(noise)
        handler = make()
        fit(handler, DataLoader(Augments(), batch_size=4, num_workers=workers), epochs=2)
        runs.append(torch.stack(handler.module.batches))
    assert torch.equal(*runs)
    values = runs[0][..., 0].flatten()
    assert len(values.unique()) == 16  # each sample of each epoch draws anew


def test_subsets_and_concatenations():
    x, y = samples()
    data = TensorDataset(x, y)
    both = ConcatDataset([Subset(data, [0, 2]), Subset(data, [1])])
    handler = make()
    fit(handler, both, shuffle=False, batch_size=2)
    assert torch.equal(torch.cat(handler.module.batches), x[[0, 2, 1]])


def test_an_iterable_dataset_in_a_loader():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*samples(), strict=True))

    handler = make()
    fit(handler, DataLoader(Stream(), batch_size=10), epochs=2)
    assert [len(batch) for batch in handler.module.batches] == [10, 10, 4] * 2


def test_a_stateful_loader():
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    x, y = samples()
    handler = make()
    loader = stateful.StatefulDataLoader(TensorDataset(x, y), batch_size=10)
    fit(handler, loader, epochs=2)
    assert [len(batch) for batch in handler.module.batches] == [10, 10, 4] * 2


# ---- parts --------------------------------------------------------------------------------------


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(requires_grad=False)

    class FreezeNorm(Callback):
        def on_epoch_begin(self, epoch, logs):
            self.model[1].eval()

    handler = make(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(handler, samples(), epochs=2, validation_split=0.5, callbacks=[FreezeNorm()])
    after = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {
        "0.weight",
        "0.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }


def test_a_module_that_keeps_a_part_in_evaluation_mode_is_respected():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(self.norm(x))

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    handler = make(Net())
    fit(handler, samples(), epochs=2, validation_split=0.5)
    assert handler.module.norm.num_batches_tracked == 0


def test_a_loss_module_with_weights_goes_to_the_device_and_counts():
    weights = torch.tensor([1.0, 9.0])
    handler = make()
    handler.set_loss_fn(nn.CrossEntropyLoss(weight=weights))
    x, y = samples()
    expected = nn.functional.cross_entropy(handler.module.eval()(x), y, weight=weights)
    assert handler.evaluate((x, y))["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_parameter_groups_have_their_own_settings():
    handler = NNHandler(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "cpu", seed=0)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_optimizer(
        torch.optim.AdamW,
        params=lambda m: [
            {"params": m[0].parameters(), "lr": 1e-5, "weight_decay": 0.0},
            {"params": m[1].parameters()},
        ],
        lr=1e-2,
    )
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    fit(handler, samples())
    rates = [group["lr"] for group in handler.optimizer.param_groups]
    assert rates == pytest.approx([1e-6, 1e-3])
    assert [group["weight_decay"] for group in handler.optimizer.param_groups] == [0.0, 0.01]


def test_one_cycle_with_momentum_by_step():
    handler = make()
    handler.set_scheduler(
        torch.optim.lr_scheduler.OneCycleLR,
        interval="step",
        max_lr=0.5,
        total_steps=9,
        cycle_momentum=False,
    )
    fit(handler, samples(), batch_size=8, epochs=3)
    assert handler.scheduler.last_epoch == 9


def test_a_metric_of_one_s_own():
    handler = make()
    handler.add_metric("right", lambda outputs, targets: (outputs.argmax(1) == targets).sum() / 24)
    x, y = samples()
    value = handler.evaluate((x, y), batch_size=24)["right"]
    assert value == pytest.approx((handler.module(x).argmax(1) == y).float().mean().item())


def test_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    handler = make()
    handler.add_metric("f1", torchmetrics.classification.MulticlassF1Score(2))
    x, y = samples()
    history = fit(handler, (x, y), epochs=2, validation_split=0.25).history
    assert len(history["val_f1"]) == 2
    reference = torchmetrics.functional.classification.multiclass_f1_score(
        handler.module.eval()(x), y, 2
    )
    assert handler.evaluate((x, y), batch_size=7)["f1"] == pytest.approx(reference.item())


def test_a_step_of_one_s_own_with_several_losses():
    handler = make()

    def step(handler, batch):
        inputs, targets = batch
        outputs = handler.model(inputs)
        main = nn.functional.cross_entropy(outputs, targets)
        penalty = outputs.square().mean()
        return StepOutput(
            main + 0.1 * penalty, outputs, targets, logs={"main": main, "penalty": penalty}
        )

    handler.set_train_step(step)
    history = fit(handler, samples(), batch_size=7, validation_split=0.25).history
    assert set(history) == {"loss", "main", "penalty", "val_loss", "lr"}
    total = history["main"][0] + 0.1 * history["penalty"][0]
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


def test_the_model_may_be_used_and_changed_between_fits():
    handler = make()
    fit(handler, samples())
    x, _ = samples()
    with torch.no_grad():
        handler.module.layer.weight.zero_()
    assert torch.equal(handler.predict(x), handler.module.layer.bias.detach().expand(24, 2))
    handler.module.layer.bias.requires_grad_(requires_grad=False)
    fit(handler, samples())


def test_hooks_of_torch_keep_working():
    heard = []
    handler = make()
    handler.module.layer.weight.register_hook(lambda gradient: heard.append("backward"))
    handler.optimizer.register_step_post_hook(lambda *args: heard.append("step"))
    fit(handler, samples(), batch_size=12)
    assert heard == ["backward", "step", "backward", "step"]


def test_anomaly_detection_and_no_grad_of_the_program_do_not_leak():
    handler = make()
    fit(handler, samples(), validation_split=0.5)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_dtype() == torch.float32
    with torch.no_grad():
        before = handler.module.layer.weight.clone()
    fit(handler, samples())
    assert not torch.equal(before, handler.module.layer.weight)


def test_outputs_of_prediction_may_be_used_in_autograd():
    handler = make()
    outputs = handler.predict(samples())
    parameter = torch.ones(2, requires_grad=True)
    (outputs * parameter).sum().backward()
    assert parameter.grad is not None
