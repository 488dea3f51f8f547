"""What only a GPU can show; run it where there is one: python tests/scripts/on_cuda.py

1. Training steps wait for nothing: they run under torch.cuda.set_sync_debug_mode("error").
2. A captured step gives the weights of the usual one, bit for bit.
3. A captured run resumes exactly at every boundary.
4. What a step costs, usual and captured.

It fails where there is no CUDA, so that nobody takes a run without one for a success.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import fitkit  # noqa: E402
from fitkit.testing import assert_resumes_exactly, differences  # noqa: E402

SIZE, BATCH = 4100, 32  # the last batch is short


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 32, generator=generator)
    return x, torch.randint(10, (SIZE,), generator=generator)


def make_handler(kind: str = "sgd") -> fitkit.NNHandler:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 10)]
    handler = fitkit.NNHandler(nn.Sequential(*layers), "cuda", seed=0)
    if kind == "sgd":
        handler.set_optimizer(torch.optim.SGD, lr=0.01, momentum=0.9)
    else:
        handler.set_optimizer(torch.optim.AdamW, lr=1e-3, capturable=kind == "capturable")
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    return handler


class NoWaiting(fitkit.Callback):
    """From the second batch of an epoch to the last one, a wait for the device is an error."""

    order = -1000

    def on_train_batch_begin(self, batch, logs):
        torch.cuda.set_sync_debug_mode("error" if 0 < batch < SIZE // BATCH else "default")


def check_waiting(folder: Path) -> None:
    pinned = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, pin_memory=True)
    for name, source, options in (
        ("in memory", data(), {"batch_size": BATCH}),
        ("own DataLoader", pinned, {}),
        ("windows", data(), {"batch_size": BATCH, "gradient_accumulation_steps": 4}),
    ):
        callbacks = [
            NoWaiting(),
            fitkit.ProgressBar(refresh_seconds=1e6),
            fitkit.CSVLogger(folder / f"{name}.csv"),
            fitkit.TerminateOnNaN(check_every_n_batches=10_000),
        ]
        clipped = {"gradient_clipping_norm": 1.0, "gradient_clipping_value": 0.5}
        handler = make_handler()
        handler.fit(source, epochs=2, callbacks=callbacks, ema_decay=0.9, **clipped, **options)
        print(f"no step waits: {name}")


def check_equality() -> None:
    cases = [("sgd", {}), ("sgd", {"precision": "bf16"}), ("capturable", {"precision": "fp16"})]
    cases += [("plain", {}), ("capturable", {}), ("sgd", {"gradient_accumulation_steps": 3})]
    for kind, options in cases:
        states = []
        for capture in (False, True):
            handler = make_handler(kind)
            handler.fit(
                data(), epochs=3, batch_size=BATCH, ema_decay=0.9, gradient_clipping_norm=1.0,
                progress_bar=False, capture=capture, **options,
            )  # fmt: skip
            states.append(handler.get_state_dict())
        found = list(differences(*states))
        if found:
            sys.exit(f"captured steps differ: {kind}, {options}: {found[:3]}")
        print(f"captured steps are the usual ones, bit for bit: {kind}, {options}")


def check_resuming() -> None:
    def small() -> fitkit.NNHandler:
        handler = make_handler()
        x, y = data()
        handler.set_train_loader(TensorDataset(x[:300], y[:300]), batch_size=BATCH)
        handler.set_val_loader(TensorDataset(x[:50], y[:50]), batch_size=BATCH)
        return handler

    tried = assert_resumes_exactly(small, epochs=2, capture=True, ema_decay=0.9)
    print(f"a captured run resumes exactly at {len(tried)} boundaries")


def show_times() -> None:
    for kind in ("sgd", "plain", "capturable"):
        for capture in (False, True):
            handler = make_handler(kind)
            settings = {"batch_size": BATCH, "progress_bar": False, "capture": capture}
            handler.fit(data(), epochs=2, **settings)
            torch.cuda.synchronize()
            began = time.perf_counter()
            handler.fit(data(), epochs=20, **settings)
            torch.cuda.synchronize()
            steps = 20 * -(-SIZE // BATCH)
            spent = (time.perf_counter() - began) / steps * 1e6
            print(f"{kind}, capture={capture}: {spent:.0f} us a step")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this needs a CUDA device, and torch sees none here: nothing was checked.")
    with tempfile.TemporaryDirectory() as folder:
        check_waiting(Path(folder))
    check_equality()
    check_resuming()
    show_times()


if __name__ == "__main__":
    main()
