"""The identity of EarlyStopping in checkpoints, written and read back."""

import pytest

import fitkit
from fitkit.core.early_stopping_identity import EarlyStoppingConfig


def test_an_identity_is_read_back():
    callback = fitkit.EarlyStopping(
        "a val loss", 0.5, 3, mode="max", baseline=0, stopping_threshold=1e-9, check_finite=False
    )
    assert callback.identity() == "a val loss max 0.5 3 0 0 1e-09 None False False"
    assert EarlyStoppingConfig.from_identity(callback.identity()) == EarlyStoppingConfig(
        "a val loss", "max", 0.5, 3, 0.0, 0, 1e-9, None, False, False
    )


@pytest.mark.parametrize("text", ["", "val_loss min", "a min x 3 None 0 None None False True"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError):
        EarlyStoppingConfig.from_identity(text)
