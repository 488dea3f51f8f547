"""``fitkit export``; what is written is read by the programs that it is for."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
import tqdm
from torch import nn

import fitkit
from fitkit.checkpointing.read_weights import read_weights

SOURCE = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens).mean(1)))

ready = Tied(6)
a_function = len
"""


@pytest.fixture(autouse=True)
def _no_monitor(monkeypatch):
    """The exporter's progress bar would leave a thread behind."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A module of the user in the current folder."""
    (tmp_path / "my_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import my_models

    yield my_models
    del sys.modules["my_models"]


@pytest.fixture
def tied(models, tmp_path):
    """A checkpoint of a model with tied weights and averages."""
    handler = fitkit.NNHandler(models.Tied, width=6, seed=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.5)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    data = (torch.arange(40).reshape(8, 5) % 11, torch.arange(8))
    handler.fit(data, epochs=2, ema_decay=0.5, progress_bar=False)
    handler.save(tmp_path / "tied.pth")
    return tmp_path / "tied.pth"


def same(first, second):
    return list(first) == list(second) and all(first[k].equal(second[k]) for k in first)


@pytest.mark.parametrize(
    ("options", "averaged"), [([], True), (["--ema"], True), (["--no-ema"], False)]
)
def test_state_dicts(cli, tied, tmp_path, options, averaged):
    output = tmp_path / "new" / "weights.pth"
    cli("export", tied, "--format", "state-dict", "-o", output, *options)
    exported = torch.load(output, weights_only=True)
    assert same(exported, read_weights(tied, averaged=averaged))
    assert not same(exported, read_weights(tied, averaged=not averaged))


@pytest.mark.parametrize("ema", ["--ema", "--no-ema"])
def test_tied_weights_as_safetensors(cli, as_json, models, tied, tmp_path, ema):
    output = tmp_path / "tied.safetensors"
    found = as_json("export", tied, "--format", "safetensors", "-o", output, ema)
    assert found["tied"] == {"head.weight": "embed.weight"}
    assert found["size_bytes"] == output.stat().st_size
    with safetensors.safe_open(output, "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    model = models.Tied(6)
    safetensors.torch.load_model(model, output)
    assert same(model.state_dict(), read_weights(tied, averaged=ema == "--ema"))
    sentence = cli("export", tied, "--format", "safetensors", "-o", output, "--force").stdout
    assert "head.weight is tied to embed.weight" in sentence


def test_weights_that_are_not_tied_are_all_in_it(cli, run, tmp_path):
    output = tmp_path / "w.safetensors"
    cli("export", run / "weights.pth", "--format", "safetensors", "-o", output)
    expected = read_weights(run / "weights.pth")
    assert all(
        one.equal(expected[name]) for name, one in safetensors.torch.load_file(output).items()
    )
    model = nn.Linear(3, 2)
    model.load_state_dict(safetensors.torch.load_file(output))


def test_averages_where_there_are_none(cli, run, tmp_path):
    output = tmp_path / "w.pth"
    message = cli(
        "export", run / "best.pth", "--format", "state-dict", "--ema", "-o", output, code=3
    ).stderr
    assert "no EMA weights" in message
    assert not output.exists()


def test_nothing_is_written_over_what_is_there(cli, run, tmp_path):
    (tmp_path / "w.pth").write_text("mine")
    call = ["export", run / "best.pth", "--format", "state-dict", "-o", tmp_path / "w.pth"]
    assert "--force" in cli(*call, code=3).stderr
    assert (tmp_path / "w.pth").read_text() == "mine"
    cli(*call, "--force")
    assert torch.load(tmp_path / "w.pth", weights_only=True)


def test_a_missing_package_is_named(cli, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    call = ["export", run / "best.pth", "--format", "safetensors", "-o", tmp_path / "w"]
    assert "pip install safetensors" in cli(*call, code=2).stderr
    assert not (tmp_path / "w").exists()


# ---- ONNX ---------------------------------------------------------------------------------------


def onnx(tied, tmp_path, model="my_models:Tied", shape="batch,tokens:int64"):
    output = tmp_path / "m.onnx"
    options = ["--model", model, "--input-shape", shape]
    return ["export", tied, "--format", "onnx", "-o", output, *options]


def test_onnx_computes_what_the_model_computes(cli, models, tied, tmp_path):
    result = cli(*onnx(tied, tmp_path))
    assert result.stdout.startswith("wrote ")
    assert result.stderr == ""
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (named,) = session.get_inputs()
    assert named.shape == ["batch", "tokens"]
    model = models.Tied(6)
    model.load_state_dict(read_weights(tied))
    tokens = np.arange(21).reshape(3, 7) % 11
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(tokens)).numpy()
    found = session.run(None, {named.name: tokens})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_ready_module_and_a_fixed_shape(cli, tied, tmp_path):
    cli(*onnx(tied, tmp_path, model="my_models:ready", shape="1,5:int64"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == [1, 5]


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"model": "my_models:Nothing"}, 2, "no attribute 'Nothing'"),
        ({"model": "nothing:Tied"}, 2, "No module named"),
        ({"model": "my_models"}, 2, "module:Class"),
        ({"model": "my_models:a_function"}, 2, "no torch.nn.Module"),
        ({"model": "torch.nn:Linear"}, 3, "width"),
        ({"shape": "x y"}, 2, "received 'x y'"),
        ({"shape": "1,0"}, 2, "received '1,0'"),
        ({"shape": "2,3:nothing"}, 2, "a dtype of torch"),
        ({"shape": "2:int64"}, 3, "expected 2D or 3D input"),
    ],
)
def test_what_cannot_be_exported(cli, tied, tmp_path, change, code, text):
    assert text in cli(*onnx(tied, tmp_path, **change), code=code).stderr
    assert not (tmp_path / "m.onnx").exists()


def test_options_of_onnx_belong_to_onnx(cli, run, tmp_path):
    call = ["export", run / "best.pth", "-o", tmp_path / "m", "--format"]
    cli(*call, "onnx", code=2)
    cli(*call, "onnx", "--model", "a:b", code=2)
    cli(*call, "state-dict", "--model", "a:b", code=2)
    cli(*call, "state-dict", "--input-shape", "1", code=2)


def test_weights_alone_of_a_class_without_arguments(cli, models, tied, tmp_path):
    torch.save(models.Tied().state_dict(), tmp_path / "w.pth")
    cli(*onnx(tmp_path / "w.pth", tmp_path, shape="2,5:int64"))
    assert (tmp_path / "m.onnx").exists()
