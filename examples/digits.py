"""Handwritten digits: train a small convolutional network, and resume it after a kill.

Train it, and find the learning curves in ``runs/digits``::

    python examples/digits.py

Stop it at any time (Ctrl-C, ``kill -9``, a power failure), then resume::

    python examples/digits.py --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from fitkit import Accuracy, CSVLogger, EarlyStopping, ModelCheckpoint, NNHandler, ReduceLROnPlateau


class DigitNet(nn.Module):
    """Images of 8 x 8 pixels, ``(batch, 1, 8, 8)``, to logits of ten digits, ``(batch, 10)``.

    Args:
        width: channels of the first two convolutions; the third has twice as many.
        dropout: probability of dropout before the last layer.
    """

    def __init__(self, width: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 2 * 2, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.layers(images)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def main() -> None:
    """Train, plot the curves, and test the best weights."""
    options = parse_options()
    folder = options.output
    torch.set_num_threads(1)  # more threads do not speed up a network this small

    # 1,797 images from scikit-learn; a fifth of them is the test set
    pixels, digits = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8) / 16.0
    train_images, test_images, train_digits, test_digits = train_test_split(
        images, digits, test_size=0.2, stratify=digits, random_state=0
    )

    handler = NNHandler(DigitNet, seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=1e-3)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    handler.auto_save(1, folder / "checkpoints", name="last")

    history = handler.fit(
        (train_images, train_digits),
        epochs=options.epochs,
        validation_split=0.2,
        callbacks=[
            ModelCheckpoint(folder / "best.pth", monitor="val_accuracy", save_best_only=True),
            EarlyStopping(monitor="val_loss", patience=10),
            ReduceLROnPlateau(monitor="val_loss", factor=0.3, patience=4),
            CSVLogger(folder / "log.csv"),
        ],
        resume=folder / "checkpoints" if options.resume else None,
    )
    best = NNHandler.load(folder / "best.pth")
    best.add_metric("accuracy", Accuracy())
    accuracy = best.evaluate((test_images, test_digits))["accuracy"]

    if not handler.world.is_main:  # print on rank 0 only
        return
    history.plot(folder / "curves.png")
    print(f"{len(history.epoch)} epochs; {handler.state.stop_reason or 'all that were asked for'}")
    print(f"test accuracy of the best weights: {accuracy:.4f}")
    for name in ("best.pth", "checkpoints/last.pth", "log.csv", "curves.png"):
        print(f"wrote {folder / name}")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a network on handwritten digits.")
    parser.add_argument("--resume", action="store_true", help="resume the last run")
    parser.add_argument("--epochs", type=int, default=40, help="maximum number of epochs (40)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/digits"), help="folder to write to (runs/digits)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
