"""Tabular regression with cross-validation: the progression of diabetes from ten measurements.

The data are 442 patients from scikit-learn, too few for one test set. So each patient is predicted
once, by a network that was trained on other patients. Early stopping restores the best weights of
each network. Linear regression is a strong baseline here::

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
    """Ten standardized measurements, ``(batch, 10)``, to one number, ``(batch,)``.

    Args:
        width: features of each hidden layer.
        dropout: probability of dropout.
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
    """Train a network for each fold, predict its patients, and plot."""
    options = parse_options()
    folder = options.output
    torch.set_num_threads(1)  # more threads do not speed up a network this small

    x, y = load_diabetes(return_X_y=True, scaled=False)
    predicted, by_line = np.empty_like(y), np.empty_like(y)
    folds = KFold(options.folds, shuffle=True, random_state=0).split(x)
    for number, (rest, fold) in enumerate(folds, start=1):
        (rest_x, fold_x), (rest_y, _) = standardized(x, rest, fold), standardized(y, rest, fold)
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
    """A handler with an untrained network."""
    handler = NNHandler(TabularNet, model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    handler.set_loss_fn(nn.HuberLoss())
    handler.add_metric("r2", R2Score())
    return handler


def standardized(values: np.ndarray, rest: np.ndarray, fold: np.ndarray) -> list[np.ndarray]:
    """Both parts of ``values``, standardized with mean and standard deviation of ``rest``."""
    mean, deviation = values[rest].mean(axis=0), values[rest].std(axis=0)
    return [(values[part] - mean) / deviation for part in (rest, fold)]


def draw(true: np.ndarray, predicted: np.ndarray, history: History, path: Path) -> None:
    """Plot predictions against true values, and the curves of one fold."""
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
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Predict the progression of diabetes.")
    parser.add_argument("--epochs", type=int, default=150, help="maximum number of epochs (150)")
    parser.add_argument("--folds", type=int, default=5, help="parts of the data, at least 2 (5)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/diabetes"), help="folder to write to"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
