from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit import ConfigurationError
from fitkit.checkpointing.savers.filenames import (
    clean_name,
    fallback_name,
    format_name,
    placeholders,
    with_extension,
)

VALUES = {"epoch": 7, "loss": 0.125, "val_loss": 2.0}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("m_{epoch}.pth", "m_7.pth"),
        ("m_{epoch:02d}.pth", "m_07.pth"),
        ("ckpt_ep{epoch:03d}_valloss{val_loss:.4f}", "ckpt_ep007_valloss2.0000"),
        ("{{x}}_{epoch}", "{x}_7"),
        ("{loss:{epoch}.1f}", "    0.1"),
        ("plain", "plain"),
        ("{epoch!r}", "7"),
    ],
)
def test_placeholders_are_filled_in(template, name):
    assert format_name(template, VALUES, "_epoch7") == name


@pytest.mark.parametrize(
    ("template", "fallback"),
    [
        ("model_epoch{epoch}_valloss{accuracy:.4f}", "model_epoch7.pth"),
        ("runs/a/{accuracy}.pth", "runs/a/checkpoint_epoch7.pth"),
        ("runs/{accuracy}/m.pt", "runs/m_epoch7.pt"),
        ("{accuracy}", "checkpoint_epoch7.pth"),
        ("best-{accuracy:.2f}.ckpt", "best_epoch7.ckpt"),
        ("{loss:02d}.pth", "checkpoint_epoch7.pth"),
        ("m_{loss:{accuracy}}.pth", "m_epoch7.pth"),
        ("m_{epoch:s}.pth", "m_epoch7.pth"),
        ("m_{epoch!x}.pth", "m_epoch7.pth"),
        ("m_{epoch:99999999999999999999}.pth", "m_epoch7.pth"),
    ],
)
def test_what_cannot_be_filled_in_gives_a_simpler_name_and_one_warning(template, fallback):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert format_name(template, VALUES, "_epoch7") == fallback
    assert len(caught) == 1
    message = str(caught[0].message)
    assert repr(template) in message
    assert repr(fallback) in message
    assert "'epoch', 'loss', 'val_loss'" in message
    if "accuracy" in template:
        assert "'accuracy'" in message


@pytest.mark.parametrize(
    "template",
    [
        "{epoch.__class__}",
        "{epoch.__class__.__init__.__globals__}",
        "{epoch[0]}",
        "{0}",
        "{}",
        "{epoch:{loss.__class__}}",
        "{epoch:{}}",
        "{ epoch }",
        "{val-loss}",
    ],
)
def test_a_template_that_reaches_into_values_is_refused(template):
    with pytest.raises(ConfigurationError, match="plain name"):
        placeholders(template)
    with pytest.raises(ConfigurationError):
        format_name(template, VALUES, "")


@pytest.mark.parametrize("template", ["{epoch", "epoch}", "{epoch:{loss}", "{a!}"])
def test_a_broken_template_is_refused(template):
    with pytest.raises(ConfigurationError, match="not a valid format string"):
        placeholders(template)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("a.pth", "a.pth"),
        ("../a.pth", "a.pth"),
        ("/etc/passwd", "etc/passwd"),
        ("a/../../b", "a/b"),
        ("..\\..\\b", "b"),
        ("C:\\x", "C_/x"),
        ("a\0b\n", "a_b_"),
        ("...", "checkpoint"),
        ("", "checkpoint"),
        ("/", "checkpoint"),
        ("a//b", "a/b"),
        (" .. /x", "x"),
        (".hidden", ".hidden"),
    ],
)
def test_names_stay_in_their_folder(name, clean):
    assert clean_name(name) == clean


@settings(max_examples=300, database=None)
@given(name=st.text(alphabet="./\\ a:\0*~", max_size=12))
def test_no_name_escapes(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "folder"
    inside = (folder / clean_name(name)).resolve()
    assert folder.resolve() in inside.parents


def test_extension():
    assert with_extension("a") == "a.pth"
    assert with_extension("a.pth") == "a.pth"
    assert with_extension("a_0.5") == "a_0.5.pth"


def test_fallback_keeps_what_is_fixed():
    assert fallback_name("a/b_{x}_{y}.pt", "_epoch1") == "a/b_epoch1.pt"
    assert fallback_name("{x}/{y}", "_epoch1") == "checkpoint_epoch1.pth"
