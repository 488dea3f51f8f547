import math

import pytest

from fitkit.callbacks.json_lines_logger import JSONLinesLogger
from fitkit.core.errors import ConfigurationError


def test_the_file_byte_for_byte(drive, tmp_path):
    path = tmp_path / "log.jsonl"
    drive(JSONLinesLogger(path)).fit(
        [
            {"loss": 0.1 + 0.2, "lr": 1e-05},
            {"loss": math.inf, "lr": -math.inf, "val_loss": math.nan},
            {"loss": 5e-324, "lr": 1.0},
        ]
    )
    assert path.read_bytes() == (
        b'{"epoch": 0, "loss": 0.30000000000000004, "lr": 1e-05, "val_loss": null}\n'
        b'{"epoch": 1, "loss": "Infinity", "lr": "-Infinity", "val_loss": "NaN"}\n'
        b'{"epoch": 2, "loss": 5e-324, "lr": 1.0, "val_loss": null}\n'
    )


@pytest.mark.parametrize("content", ["[1]\n", "no json\n", "1\n"])
def test_a_file_of_something_else_is_not_appended_to(drive, tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="cannot append"):
        drive(JSONLinesLogger(path, append=True)).begin()
    assert path.read_text() == content
