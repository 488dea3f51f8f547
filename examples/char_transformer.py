"""A small character transformer that generates Python code, trained on the standard library.

The training text is on every machine with Python. Train, print generated text, and write the curves
to ``runs/char_transformer``::

    python examples/char_transformer.py

Stop it at any time, then resume::

    python examples/char_transformer.py --resume
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fitkit import Accuracy, CSVLogger, History, NNHandler

NUM_CHARACTERS = 128  # ASCII; other characters become question marks


class CharTransformer(nn.Module):
    """Logits of the next character: ``(batch, length)`` to ``(batch, 128, length)``.

    Args:
        width: features per position; a multiple of ``heads``.
        depth: layers.
        heads: attention heads.
        context: maximum number of positions.
        dropout: probability of dropout.
    """

    def __init__(
        self,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        context: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(NUM_CHARACTERS, width)
        self.places = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """The logits; a position attends to itself and earlier positions."""
        length = text.shape[1]
        features = self.characters(text) + self.places.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        features = self.layers(features, mask=mask, is_causal=True)
        return self.scores(self.norm(features)).transpose(1, 2)


def main() -> None:
    """Train, compare with counts of character groups, and generate text."""
    options = parse_options()
    folder = options.output
    text = read_standard_library(options.characters)
    cut = len(text) * 9 // 10  # the last files are for validation
    train, validation = windows(text[:cut]), windows(text[cut:])

    batch_size = 32
    steps = options.epochs * math.ceil(len(train[0]) / batch_size)
    handler = NNHandler(CharTransformer, seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.1)
    handler.set_scheduler(
        torch.optim.lr_scheduler.OneCycleLR, interval="step", max_lr=3e-3, total_steps=steps
    )
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    handler.auto_save(1, folder / "checkpoints", name="last")
    history = handler.fit(
        train,
        epochs=options.epochs,
        batch_size=batch_size,
        validation_data=validation,
        gradient_clipping_norm=1.0,
        callbacks=[CSVLogger(folder / "log.csv")],
        resume=folder / "checkpoints" if options.resume else None,
    )

    if not handler.world.is_main:  # print on rank 0 only
        return
    bits = history.history["val_loss"][-1] / math.log(2)
    counted = {f"counting groups of {n}": bits_by_counting(text, cut, n - 1) for n in (1, 2, 3)}
    print(f"{bits:.3f} bits per character of files it has never seen")
    for name, value in counted.items():
        print(f"{value:.3f} bits by {name}")
    print("it writes:\n" + write(handler, "    def ", options.write))
    draw(history, counted, folder / "bits.png")
    for name in ("checkpoints/last.pth", "log.csv", "bits.png"):
        print(f"wrote {folder / name}")


def read_standard_library(characters: int) -> Tensor:
    """The first ``characters`` of the standard library as ASCII codes, up to 8,000 per module."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        module = path.read_text(encoding="utf-8", errors="replace").encode("ascii", "replace")
        text += module[:8_000]  # so that no single module dominates
        if len(text) >= characters:
            break
    return torch.tensor(list(text[:characters]))


def windows(text: Tensor, length: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``(windows, length)``: the text, and the text shifted by one character."""
    pieces = (len(text) - 1) // length
    return (
        text[: pieces * length].view(pieces, length),
        text[1 : pieces * length + 1].view(pieces, length),
    )


def bits_by_counting(text: Tensor, cut: int, before: int) -> float:
    """Bits per character after ``cut``, from counts given the ``before`` previous characters."""
    rows = sum((text.roll(back) * NUM_CHARACTERS ** (back - 1) for back in range(1, before + 1)), 0)
    cells = rows * NUM_CHARACTERS + text
    counts = torch.bincount(cells[before:cut], minlength=NUM_CHARACTERS ** (before + 1)) + 0.1
    shares = counts.view(-1, NUM_CHARACTERS)
    shares = shares / shares.sum(dim=1, keepdim=True)
    return float(-shares.view(-1)[cells[cut:]].log2().mean())


def write(handler: NNHandler, start: str, characters: int) -> str:
    """``start`` and ``characters`` more, sampled from the model."""
    model, generator = handler.module.eval(), torch.Generator().manual_seed(0)
    text = torch.tensor([list(start.encode("ascii"))], device=handler.device)
    for _ in range(characters):
        with torch.inference_mode():
            scores = model(text[:, -model.context :])[:, :, -1]
        chances = torch.softmax(scores.cpu() / 0.7, dim=1)
        drawn = torch.multinomial(chances, 1, generator=generator)
        text = torch.cat([text, drawn.to(text.device)], dim=1)
    return bytes(text[0].tolist()).decode("ascii")


def draw(history: History, counted: dict[str, float], path: Path) -> None:
    """Plot the bits per character over the epochs, and those of counting."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [epoch + 1 for epoch in history.epoch]
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        bits = [loss / math.log(2) for loss in history.history[name]]
        axes.plot(epochs, bits, marker="o", label=label)
    for name, value in counted.items():
        axes.axhline(value, color="grey", linestyle=":")
        axes.annotate(name, (epochs[-1], value), ha="right", va="bottom", color="grey")
    axes.set(xlabel="epoch", ylabel="bits per character", title="A transformer on Python's sources")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train a character transformer on Python's sources."
    )
    parser.add_argument("--resume", action="store_true", help="resume the last run")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the text (8)")
    parser.add_argument(
        "--characters", type=int, default=500_000, help="characters of text to read (500000)"
    )
    parser.add_argument("--write", type=int, default=300, help="characters to write (300)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/char_transformer"), help="folder to write to"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
