"""A custom callback: which images are learned, forgotten, and learned again?

It counts for each image how often it was classified correctly in one epoch and wrongly in the next.
Images that are forgotten often are hard, or have a wrong label. The callback has thirty lines. This
script first tests that it resumes exactly, like the built-in callbacks, and then trains with it::

    python examples/custom_callback.py

References:
    Toneva et al. 2019, "An Empirical Study of Example Forgetting during Deep Neural Network
    Learning", https://arxiv.org/abs/1812.05159.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fitkit import Accuracy, Callback, NNHandler
from fitkit.testing import assert_resumes_exactly


class ForgettingEvents(Callback):
    """Counts how often each sample was right after one epoch and wrong after the next.

    Args:
        inputs: the samples to observe, ``(samples, ...)``.
        targets: their classes, ``(samples,)``.

    Attributes:
        was_right: whether each sample was right after the last epoch, ``(samples,)``.
        was_learned: whether it ever was, ``(samples,)``.
        num_forgotten: how often each was forgotten, ``(samples,)``.
    """

    state_fields = ("was_right", "was_learned", "num_forgotten")  # saved in checkpoints

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        self.was_right = torch.zeros(len(targets), dtype=torch.bool)
        self.was_learned = torch.zeros(len(targets), dtype=torch.bool)
        self.num_forgotten = torch.zeros(len(targets), dtype=torch.int64)

    def on_epoch_end(self, epoch, logs) -> None:
        """Predict, count, and log the number of forgotten samples."""
        guesses = self.handler.predict(self.inputs, batch_size=256).argmax(dim=1)
        is_right = guesses == self.targets
        forgotten = self.was_right & ~is_right
        self.num_forgotten = self.num_forgotten + forgotten
        self.was_right, self.was_learned = is_right, self.was_learned | is_right
        self.log("forgotten", int(forgotten.sum()))


class DigitNet(nn.Module):
    """Images of 8 x 8 pixels, ``(batch, 64)``, to logits of ten digits, ``(batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self.layers(pixels)


def make_handler() -> NNHandler:
    """A handler with a small network for images of 8 x 8 pixels."""
    handler = NNHandler(DigitNet, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    return handler


def main() -> None:
    """Test that the callback resumes exactly, train with it, and plot the result."""
    options = parse_options()
    torch.set_num_threads(1)  # more threads do not speed up a network this small
    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels / 16.0, dtype=torch.float32)
    targets = torch.tensor(digits)

    print(f"resumes exactly at each of {test_resume(inputs[:64], targets[:64])} boundaries")

    forgetting = ForgettingEvents(inputs, targets)
    history = make_handler().fit(
        (inputs, targets), epochs=options.epochs, callbacks=[forgetting], progress_bar=False
    )
    print(f"accuracy {history.history['accuracy'][-1]:.3f} after {options.epochs} epochs")
    print(f"forgotten in each epoch: {[int(value) for value in history.history['forgotten']]}")
    never = int((forgetting.was_learned & (forgetting.num_forgotten == 0)).sum())
    print(f"{never} of {len(targets)} images were learned and never forgotten")
    path = options.output / "forgotten.png"
    draw(forgetting, path)
    print(f"wrote {path}")


def test_resume(inputs: Tensor, targets: Tensor) -> int:
    """Interrupt a short run at every boundary and compare; returns the number of boundaries."""

    def handler_with_data() -> NNHandler:
        handler = make_handler()
        handler.set_train_loader((inputs, targets), batch_size=32)
        return handler

    boundaries = assert_resumes_exactly(
        handler_with_data, make_callbacks=lambda: [ForgettingEvents(inputs, targets)], epochs=3
    )
    return len(boundaries)


def draw(forgetting: ForgettingEvents, path: Path) -> None:
    """Plot how often images were forgotten, and the twelve that were forgotten most often."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    axes = left.subplots()
    counts = np.bincount(forgetting.num_forgotten.numpy())
    axes.bar(range(len(counts)), counts)
    axes.set(xlabel="times forgotten", ylabel="images", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    hardest = forgetting.num_forgotten.argsort(descending=True, stable=True)[:12]
    for index, cell in zip(hardest.tolist(), right.subplots(3, 4).flat, strict=True):
        cell.imshow(forgetting.inputs[index].reshape(8, 8).numpy(), cmap="gray_r")
        times = int(forgetting.num_forgotten[index])
        cell.set_title(f"a {int(forgetting.targets[index])}, {times} times", fontsize=9)
        cell.set_axis_off()
    right.suptitle("Forgotten most often")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Find the images that are forgotten most often.")
    parser.add_argument("--epochs", type=int, default=30, help="epochs (30)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/custom_callback"), help="folder to write to"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
