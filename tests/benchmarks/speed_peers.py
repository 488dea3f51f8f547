"""The same training by other packages, as far as they are installed; see ``speed.py``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

Train = Callable[[Any, DataLoader[Any], bool], nn.Module]


def installed() -> Iterator[tuple[str, Train]]:
    """Names of packages and how they train ``(workload, loader, kept)`` without a word."""
    packages = {
        "ignite": ("Ignite", _ignite),
        "skorch": ("skorch", _skorch),
        "accelerate": ("Accelerate", train_with_accelerate),
        "lightning": ("Lightning", _lightning),
        "transformers": ("HF Trainer", _hf_trainer),
        "keras": ("Keras", _keras),
    }
    for package, (name, train) in packages.items():
        if importlib.util.find_spec(package) is not None:
            yield name, quietly(train)


def quietly(train: Callable[..., Any]) -> Callable[..., Any]:
    """The same without what the package writes."""

    def run(*args: Any) -> Any:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            return train(*args)

    return run


def _ignite(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    from ignite.contrib.handlers import ProgressBar
    from ignite.engine import create_supervised_trainer
    from ignite.metrics import Accuracy, Average

    model, optimizer, loss_fn = workload.build()
    transform = (lambda x, y, y_pred, loss: (y_pred, y, loss)) if kept else (lambda *_: None)
    trainer = create_supervised_trainer(model, optimizer, loss_fn, output_transform=transform)
    if kept:
        Average(output_transform=lambda out: out[2].detach()).attach(trainer, "loss")
        Accuracy(output_transform=lambda out: out[:2]).attach(trainer, "accuracy")
        ProgressBar().attach(trainer)
    trainer.run(loader, max_epochs=workload.epochs)
    return model


def _skorch(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring, ProgressBar

    callbacks = []
    if kept:
        accuracy = EpochScoring("accuracy", on_train=True, use_caching=True, name="accuracy")
        callbacks = [("accuracy", accuracy), ("bar", ProgressBar())]
    net = NeuralNetClassifier(
        workload.model(),
        criterion=nn.CrossEntropyLoss,
        optimizer=workload.optimizer,
        lr=workload.lr,
        max_epochs=workload.epochs,
        batch_size=workload.batch_size,
        train_split=None,
        iterator_train=lambda dataset, **_: loader,
        callbacks=callbacks if kept else "disable",
        verbose=0,
    )
    net.fit(loader.dataset, y=None)
    return net.module_


def train_with_accelerate(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    from accelerate import Accelerator
    from tqdm import tqdm

    accelerator = Accelerator(cpu=True)
    model, optimizer, loss_fn = workload.build()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(workload.epochs):
        loss_sum, right, number = torch.zeros(()), torch.zeros((), dtype=torch.long), 0
        for inputs, targets in tqdm(loader) if kept else loader:
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if kept:
                with torch.no_grad():
                    if accelerator.num_processes > 1:
                        outputs, targets = accelerator.gather_for_metrics((outputs, targets))
                        loss = loss_fn(outputs, targets)
                    loss_sum += loss.detach() * len(targets)
                    right += (outputs.argmax(dim=1) == targets).sum()
                    number += len(targets)
    return accelerator.unwrap_model(model)


def _lightning(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    return train_with_lightning(workload, loader, kept=kept)


def train_with_lightning(workload: Any, loader: Any, *, kept: bool, **options: Any) -> nn.Module:
    """By its Trainer, which gets ``options``."""
    import lightning
    import torchmetrics

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model()
            self.loss_fn = nn.CrossEntropyLoss()
            if kept:
                self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=workload.classes)

        def training_step(self, batch: Any, index: int) -> Any:
            outputs = self.model(batch[0])
            loss = self.loss_fn(outputs, batch[1])
            if kept:
                self.accuracy(outputs, batch[1])
                self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True)
                self.log("accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return workload.optimizer(self.parameters(), lr=workload.lr)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=workload.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=kept,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader)
    return module.model


def _hf_trainer(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model()

        def forward(self, inputs: Any, labels: Any) -> Any:
            outputs = self.model(inputs)
            return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}

    class Mine(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

    collate = loader.collate_fn
    loader.collate_fn = lambda samples: dict(
        zip(("inputs", "labels"), collate(samples), strict=True)
    )
    module = Wrapped()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=workload.epochs,
            per_device_train_batch_size=workload.batch_size,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            logging_strategy="epoch" if kept else "no",
            disable_tqdm=not kept,
            use_cpu=True,
        )
        optimizer = workload.optimizer(module.parameters(), lr=workload.lr)
        trainer = Mine(
            model=module, args=arguments, train_dataset=loader.dataset, optimizers=(optimizer, None)
        )
        trainer.train()
    return module.model


def _keras(workload: Any, loader: DataLoader[Any], kept: bool) -> nn.Module:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layer = keras.layers.TorchModuleWrapper(workload.model())
    model = keras.Sequential([keras.layers.Input(workload.shape), layer])
    kind = "SGD" if workload.optimizer is torch.optim.SGD else "Adam"
    model.compile(
        optimizer=getattr(keras.optimizers, kind)(learning_rate=workload.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"] if kept else None,
    )
    model.fit(loader, epochs=workload.epochs, verbose=1 if kept else 0)
    return layer.module
