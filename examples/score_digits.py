"""Generate handwritten digits with a score-based model, in about two minutes on a CPU.

Train it, and find the generated images in ``runs/score_digits``::

    python examples/score_digits.py

Stop it at any time (Ctrl-C, ``kill -9``), then resume::

    python examples/score_digits.py --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fitkit import CSVLogger, NNHandler
from fitkit.generative import VPSDE

NO_DIGIT = 10  # the label for "any digit", which guidance needs


class DigitScore(nn.Module):
    """The score of noisy digits ``(batch, 1, 8, 8)``, times the standard deviation of the noise.

    Args:
        width: features of each layer.
        depth: residual blocks.
        forget: share of the training digits whose label is hidden.
    """

    def __init__(self, width: int = 256, depth: int = 4, forget: float = 0.1) -> None:
        super().__init__()
        self.forget = forget
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, 5.0, 32)))
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        self.digit = nn.Embedding(NO_DIGIT + 1, width)
        self.first = nn.Linear(64, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.last = nn.Linear(width, 64)

    def forward(self, t: Tensor, x: Tensor, digits: Tensor) -> Tensor:
        """The scaled score at times ``t`` ``(batch,)``, for digits ``(batch,)``."""
        if self.training:
            hidden = torch.rand(len(digits), device=digits.device) < self.forget
            digits = digits.masked_fill(hidden, NO_DIGIT)
        angles = t[:, None] * self.frequencies
        context = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.digit(digits)
        features = self.first(x.flatten(1))
        for block in self.blocks:
            features = block(features, context)
        return self.last(features).reshape(x.shape)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.context = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        return features + self.layers(self.norm(features) + self.context(context))


def main() -> None:
    """Train, sample ten images of each digit, and write them to a file."""
    options = parse_options()
    folder = options.output
    torch.set_num_threads(1)  # more threads do not speed up a network this small

    pixels, labels = load_digits(return_X_y=True)  # 1,797 images from scikit-learn
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8.0 - 1.0
    digits = torch.from_numpy(labels)

    handler = NNHandler(DigitScore, model_type="score_based", seed=0, save_model_code=True)
    handler.set_sde(VPSDE)
    handler.set_optimizer(torch.optim.AdamW, lr=1e-3)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=options.epochs)
    handler.auto_save(50, folder / "checkpoints", name="last")
    history = handler.fit(
        (images, digits),
        epochs=options.epochs,
        batch_size=128,
        ema_decay=0.999,
        callbacks=[CSVLogger(folder / "log.csv")],
        resume=folder / "checkpoints" if options.resume else None,
    )
    if not handler.world.is_main:  # print on rank 0 only
        return
    wanted = torch.arange(10).repeat(10)
    drawn = handler.sample(
        (100, 1, 8, 8),
        steps=options.steps,
        conditions=wanted,
        unconditional=torch.tensor([NO_DIGIT]),
        guidance=2.0,
        seed=0,
    )
    write_picture(drawn, folder / "samples.png")
    print(f"{len(history.epoch)} epochs; loss {history.history['loss'][-1]:.4f}")
    for name in ("checkpoints/last.pth", "log.csv", "samples.png"):
        print(f"wrote {folder / name}")


def write_picture(images: Tensor, path: Path) -> None:
    """Write ten rows of ten images, dark on light."""
    tiles = nn.functional.pad(images.clamp(-1, 1), (1, 1, 1, 1), value=-1.0)
    sheet = tiles.reshape(10, 10, 10, 10).permute(0, 2, 1, 3).reshape(100, 100)
    figure = Figure(figsize=(5, 5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet.numpy(), cmap="gray_r", interpolation="nearest")
    axes.set_axis_off()
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a score-based model to generate digits.")
    parser.add_argument("--resume", action="store_true", help="resume the last run")
    parser.add_argument("--epochs", type=int, default=400, help="epochs (400)")
    parser.add_argument("--steps", type=int, default=300, help="steps from noise to digits (300)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/score_digits"),
        help="folder to write to (runs/score_digits)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
