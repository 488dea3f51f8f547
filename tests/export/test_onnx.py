"""Inputs and models for ONNX; the outputs of exported models are tested with ``fitkit export``."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, ConfigurationError
from fitkit.export.onnx import InputSpec, build_model, export_onnx, import_model


def test_inputs():
    assert InputSpec.parse("1, 28,28") == InputSpec((1, 28, 28), torch.float32)
    spec = InputSpec.parse("batch,3:int64")
    assert spec.example().shape == (2, 3)
    assert spec.example().dtype == torch.int64
    dims = {}
    first, second = spec.dynamic_shapes(dims), InputSpec.parse("4,batch").dynamic_shapes(dims)
    assert first[0] is second[1], "one name is one size"
    assert InputSpec.parse("4,5").dynamic_shapes(dims) == {}


@pytest.mark.parametrize("text", ["", "1,", "-1", "1.5", "a b", "1:", "1:Tensor", "1:float33", "0"])
def test_what_is_no_input(text):
    if text == "1:":
        assert InputSpec.parse(text).dtype is torch.float32
        return
    with pytest.raises(ConfigurationError, match="an input must be sizes"):
        InputSpec.parse(text)


def test_models_by_name():
    assert import_model("torch.nn:Linear") is nn.Linear
    assert import_model("torch.nn:modules.linear.Linear") is nn.Linear
    for name in ("torch.nn:Nothing", "torch.nn", "", ":", "torch:float32", "nothing:Net", "a b:c"):
        with pytest.raises(ConfigurationError):
            import_model(name)


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_models.py").write_text("1 / 0")
    with pytest.raises(ConfigurationError, match="ZeroDivisionError: division by zero"):
        import_model("failing_models:Net")


def test_weights_that_do_not_fit(tmp_path):
    model = nn.Linear(2, 1)
    with pytest.raises(CheckpointError, match=r"shape \(3,\)"):
        build_model(model, tmp_path, {"weight": torch.ones(1, 2), "bias": torch.ones(3)})
    built = build_model(model, tmp_path, {"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    assert not built.training
    assert built.bias.item() == 1.0


def test_nothing_goes_in(tmp_path):
    with pytest.raises(ConfigurationError, match="received none: pass at least one"):
        export_onnx(nn.Linear(1, 1), [], tmp_path / "m.onnx")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigurationError, match="pip install onnx onnxscript"):
        export_onnx(nn.Linear(1, 1), [InputSpec((1, 1))], tmp_path / "m.onnx")
