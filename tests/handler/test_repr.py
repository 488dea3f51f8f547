"""The ``repr`` and the HTML of handlers; notebooks are executed."""

from __future__ import annotations

import sys
import textwrap
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

import fitkit
from fitkit.checkpointing.catalog.metadata import read_metadata


def make(**options):
    handler = fitkit.NNHandler(nn.Linear, "cpu", in_features=3, out_features=2, seed=0, **options)
    handler.set_optimizer(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99))
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    return handler


def trained(epochs=3):
    handler = make()
    x = torch.randn(20, 3)
    y = (x.sum(1) > 0).long()
    handler.fit((x, y), epochs=epochs, validation_data=(x, y), progress_bar=False)
    return handler


def rows_of(html):
    return {
        "".join(row[0].itertext()): "".join(row[1].itertext())
        for row in ElementTree.fromstring(f"<p>{html}</p>").iter("tr")
        if len(row) > 1
    }


def test_a_new_handler_says_what_is_missing():
    handler = fitkit.NNHandler(nn.Linear(3, 2), "cpu")
    assert repr(handler) == "<NNHandler: Linear, cpu, 0 epochs, step 0>"
    rows = rows_of(handler._repr_html_())
    assert rows["optimizer"] == "not set: set_optimizer"
    assert rows["loss"] == "not set: set_loss_fn"
    assert rows["model"] == "Linear, 8 parameters, on cpu"
    handler.set_train_step(lambda handler, batch: None)
    assert "loss" not in rows_of(handler._repr_html_())


def test_a_handler_with_everything():
    handler = trained()
    handler.set_scheduler(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0)
    handler.set_train_loader((torch.zeros(4, 3), torch.zeros(4)))
    handler.add_callback(fitkit.EarlyStopping("val_loss"))
    assert repr(handler) == (
        "<NNHandler: Linear, cpu, Adam(lr=0.1, betas=(0.9, 0.99)), LambdaLR(lr_lambda=<function>), "
        "3 epochs, step 3>"
    )
    html = handler._repr_html_()
    rows = rows_of(html)
    assert rows["callbacks"] == "EarlyStopping"
    assert rows["metrics"] == "accuracy"
    assert rows["trained"] == "3 epochs, step 3"
    assert "History of 3 epochs" in html


def test_nothing_is_computed_and_no_tensor_is_read(monkeypatch):
    handler = trained()
    for name in ("item", "tolist", "numpy", "cpu", "__repr__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *args: pytest.fail("a tensor was read"))
    monkeypatch.setattr(nn.Module, "__call__", lambda *args: pytest.fail("the model was called"))
    for one in (handler, handler.history):
        assert repr(one)
        assert one._repr_html_()


def test_a_history():
    history = trained().history
    assert repr(history).startswith("<History of 3 epochs: loss=")
    html = history._repr_html_()
    found = ElementTree.fromstring(f"<p>{html}</p>")
    curves = [one for one in found.iter() if one.tag.endswith("polyline")]
    assert [one[0].text for one in curves] == ["loss", "val_loss", "accuracy", "val_accuracy", "lr"]
    assert repr(fitkit.History()) == "<History of 0 epochs>"
    assert fitkit.History()._repr_html_() == "<div>History of 0 epochs</div>"


def test_a_history_that_was_interrupted_and_has_gaps_and_odd_names():
    history = fitkit.History()
    history.load_state_dict({"epoch": [0], "history": {"<i>": [float("nan")], "val_x": [1.0]}})
    history.interrupted = True
    assert repr(history) == "<History of 1 epoch, interrupted: <i>=nan val_x=1.0000>"
    html = history._repr_html_()
    assert "<i>" not in html
    assert "History of 1 epoch, interrupted" in html


def test_metadata(tmp_path):
    trained().save(tmp_path / "a<b.pth")
    metadata = read_metadata(tmp_path / "a<b.pth")
    assert repr(metadata) == f"<checkpoint {str(tmp_path / 'a<b.pth')!r}: 3 epochs, step 3>"
    rows = rows_of(metadata._repr_html_())
    assert rows["weights"] == "8 numbers in 2 tensors"
    assert rows["model"] == "torch.nn.modules.linear:Linear"
    assert rows["last values"].startswith("loss=0.")
    assert "a&lt;b" in metadata._repr_html_()


CELLS = (
    "import fitkit, torch, sys; 'ipywidgets' in sys.modules",
    """
    x = torch.randn(64, 3); y = (x.sum(1) > 0).long()
    handler = fitkit.NNHandler(torch.nn.Linear, in_features=3, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(torch.nn.CrossEntropyLoss())
    handler.fit((x, y), epochs=2, validation_split=0.25)
    """,
    "handler",
    "handler.summary((x, y))",
    "handler.find_learning_rate((x, y), num_steps=10)",
    """
    from fitkit.checkpointing.catalog.metadata import read_metadata
    handler.save("run.pth")
    read_metadata("run.pth")
    """,
)


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The cells of a notebook, run by a kernel without ipywidgets; warnings are errors."""
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    strict = (
        "import warnings, sys, torch, tqdm; sys.modules['ipywidgets'] = None\n"
        "warnings.simplefilter('error')"
    )
    cells = [strict, *map(textwrap.dedent, CELLS)]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    return notebook.cells[1:]


def shown(cell):
    return [one for one in cell.outputs if one.output_type == "execute_result"][-1].data


@pytest.mark.slow
def test_in_a_notebook(executed):
    _, distribute_like, handler, summary, sweep, metadata = executed
    errors = [one.text for cell in executed for one in cell.outputs if one.get("name") == "stderr"]
    assert len(errors) == 1  # the lines of the epochs
    assert [line.split(":")[0] for line in errors[0].splitlines()] == ["Epoch 1/2", "Epoch 2/2"]
    assert "History of 2 epochs" in shown(distribute_like)["text/html"]
    assert "<svg" in shown(distribute_like)["text/html"]
    assert shown(distribute_like)["text/plain"].startswith("<History of 2 epochs: loss=")
    assert "SGD(lr=0.1)" in shown(handler)["text/html"]
    assert "(64, 2)" in shown(summary)["text/html"]
    assert "LearningRateSweep" in shown(sweep)["text/html"]
    assert "run.pth" in shown(metadata)["text/html"]
