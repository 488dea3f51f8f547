"""Tabular regression: how a patient's diabetes goes on, from ten measurements.

442 patients that come with scikit-learn. So few are too few for one test set: each patient is
predicted once, by a network that was trained on the others. Each network stops when it no longer
gets better and puts its best weights back. Linear regression is hard to beat here::

    python examples/diabetes.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import KFold
from torch import Tensor, nn

from fitkit import EarlyStopping, History, ModelCheckpoint, NNHandler, R2Score


class TabularNet(nn.Module):
    """From ten standardised measurements, ``(batch, 10)``, to one number, ``(batch,)``.

    Args:
        width: features of each hidden layer.
        dropout: share of them that is dropped in training.
    """

    def __init__(self, width: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(10, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )

    def forward(self, measurements: Tensor) -> Tensor:
        """The prediction, in standard deviations from the mean."""
        return self.layers(measurements).squeeze(1)


def main() -> None:
    """Train a network for each fold, predict its patients, and draw."""
    options = parse_options()
    folder = options.output
    torch.set_num_threads(1)  # a network this small gains nothing from more

    x, y = load_diabetes(return_X_y=True, scaled=False)
    predicted, by_line = np.empty_like(y), np.empty_like(y)
    folds = KFold(options.folds, shuffle=True, random_state=0).split(x)
    for number, (rest, fold) in enumerate(folds, start=1):
        (rest_x, fold_x), (rest_y, _) = standardised(x, rest, fold), standardised(y, rest, fold)
        stopping = EarlyStopping(patience=20, restore_best_weights=True)
        saving = ModelCheckpoint(folder / f"fold{number}.pth", "val_loss", save_best_only=True)
        handler = make_handler()
        history = handler.fit(
            (rest_x, rest_y),
            epochs=options.epochs,
            validation_split=0.2,
            callbacks=[stopping, saving],
            progress_bar=False,
        )
        predicted[fold] = handler.predict(fold_x).numpy() * y[rest].std() + y[rest].mean()
        by_line[fold] = LinearRegression().fit(rest_x, y[rest]).predict(fold_x)
        best = f"epoch {stopping.best_epoch + 1} of {len(history.epoch)}"
        print(f"fold {number}: R2 {r2_score(y[fold], predicted[fold]):.3f}, {best}")

    r2 = r2_score(y, predicted)
    print(f"R2 over all patients {r2:.3f}, of linear regression {r2_score(y, by_line):.3f}")
    print(f"mean absolute error {mean_absolute_error(y, predicted):.1f} on a scale of 25 to 346")
    draw(y, predicted, history, folder / "predictions.png")
    for name in (f"fold{number}.pth", "predictions.png"):
        print(f"wrote {folder / name}")


def make_handler() -> NNHandler:
    """An untrained network with its parts."""
    handler = NNHandler(TabularNet, model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    handler.set_loss_fn(nn.HuberLoss())
    handler.add_metric("r2", R2Score())
    return handler


def standardised(values: np.ndarray, rest: np.ndarray, fold: np.ndarray) -> list[np.ndarray]:
    """Those of ``rest`` and ``fold``, with the mean and deviation of ``rest`` taken out of both."""
    mean, deviation = values[rest].mean(axis=0), values[rest].std(axis=0)
    return [(values[part] - mean) / deviation for part in (rest, fold)]


def draw(true: np.ndarray, predicted: np.ndarray, history: History, path: Path) -> None:
    """Each patient as a point, on the line if the prediction is right; the curves of one fold."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    curves, points = figure.subplots(1, 2)
    for name, label in (("r2", "training"), ("val_r2", "validation")):
        curves.plot([epoch + 1 for epoch in history.epoch], history.history[name], label=label)
    curves.set(xlabel="epoch", ylabel="R2", title="The last fold", ylim=(-0.2, 1.0))
    curves.legend()
    points.scatter(true, predicted, s=14, alpha=0.6)
    points.plot([25, 346], [25, 346], color="grey", linestyle=":")
    points.set(
        xlabel="progression after a year",
        ylabel="predicted by a network that has not seen the patient",
        title=f"442 patients, R2 {r2_score(true, predicted):.2f}",
    )
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Predict the progression of diabetes.")
    parser.add_argument("--epochs", type=int, default=150, help="epochs at most (150)")
    parser.add_argument("--folds", type=int, default=5, help="parts of the data, at least 2 (5)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/diabetes"), help="folder to write to"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
