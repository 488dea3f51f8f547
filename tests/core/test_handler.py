"""The protocol that ``Callback.handler`` has: NNHandler offers all of it, and mypy agrees."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from fitkit import NNHandler
from fitkit.core.handler import Handler

NAMES = sorted({name for name in (*vars(Handler), *Handler.__annotations__) if name[0] != "_"})

USER_CODE = """
import torch
from fitkit import Callback, Logs, NNHandler
from fitkit.checkpointing.saving import save_single_file
from fitkit.checkpointing.trainer_saving import auto_save_epoch

handler = NNHandler(torch.nn.Linear, in_features=1, out_features=1)
save_single_file(handler, {}, "x.pth")
auto_save_epoch(handler, 0, 1, True, {})


class Mine(Callback):
    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.handler.stop_training = self.handler.history.epoch[-1] > 3
        self.handler.evaluate((1, 2), batch_size=4)
        MISTAKE
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_handler_has_every_name_of_the_protocol(name):
    assert hasattr(NNHandler(nn.Linear(1, 1), "cpu"), name)


def test_the_protocol_is_what_authors_of_callbacks_need():
    assert {"model", "module", "optimizer", "state", "history", "logger", "log"} <= set(NAMES)
    assert len(NAMES) < 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [("pass", "Success"), ("self.handler.nothing", '"Handler" has no attribute "nothing"')],
)
def test_users_code_is_checked_by_mypy(tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(USER_CODE.replace("MISTAKE", line), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert message in found.stdout
