"""Names from files: nothing that a command prints moves the cursor or begins a line of its own."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import fitkit.cli
from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.cli.all_commands import main

GOLDEN = Path(__file__).parents[1] / "checkpointing" / "golden" / "rich.pth"
EVIL = "=1+1\x1b[2J\x1b]0;title\x07\n0 of 0 files whole\r\u202egnp\u2066\x9b31m\x7f\u2028"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in which every name of the user's is one that a terminal would obey."""
    folder = tmp_path_factory.mktemp("evil") / "run"
    folder.mkdir()
    state = safe_load.read(GOLDEN)
    state["model_class"] = state["optimizer_class"] = state["scheduler_class"] = f"a:{EVIL}"
    state["model_kwargs"] = {EVIL: EVIL}
    state["model_type"] = state["fitkit_version"] = state["pytorch_version"] = EVIL
    state["model_code"] = f"class A:\n\tx = '{EVIL}'"
    state["model_state_dict"] = {EVIL: torch.ones(2), f"{EVIL}.b": torch.ones(1)}
    history = state["history"]["history"]
    length = len(next(iter(history.values())))
    history[EVIL] = [0.5] * length
    state["progress"]["state"]["stop_reason"] = EVIL
    first = next(iter(state["callback_states"].values()))
    state["callback_states"][EVIL] = {**first, "state": {EVIL: EVIL}}
    atomic_write.write(state, folder / f"{EVIL.replace('/', '')}.pth")
    torch.save({EVIL: EVIL, "tensor": torch.ones(2)}, folder / "other.pth")
    torch.save({EVIL: torch.ones(2)}, folder / "weights.pth")
    (folder / f"damaged{EVIL}.pth").write_bytes(b"PK\x03\x04")
    return folder


def commands(folder: Path):
    whole = next(path for path in folder.iterdir() if path.name.startswith("="))
    out = folder.parent / EVIL
    return {
        "ls": ["ls", folder],
        "ls of nothing": ["ls", folder.parent / "=nothing\x1b\n"],
        "ls verified": ["ls", folder, "--verify", "--score", EVIL],
        "inspect": ["inspect", whole, "--code"],
        "inspect other": ["inspect", folder / "other.pth"],
        "inspect weights": ["inspect", folder / "weights.pth", "--depth", "5"],
        "verify": ["verify", folder],
        "verify a missing file": ["verify", out],
        "diff": ["diff", whole, folder / "other.pth"],
        "diff weights": ["diff", whole, folder / "weights.pth", "--weights"],
        "history": ["history", whole],
        "history as CSV": ["history", whole, "--csv"],
        "prune": ["prune", folder, "--keep-last", "1", "--dry-run"],
        "export": ["export", whole, "--format", "state-dict", "-o", out, "--force"],
        "convert": ["convert", whole, out, "--force"],
        "split": ["split", whole, "--keys", EVIL],
        "report": ["report", folder, "-o", out],
        **{f"{name} as JSON": [name, whole, "--json"] for name in ("inspect", "history", "verify")},
    }


@pytest.mark.parametrize("number", range(20))
def test_nothing_that_a_terminal_obeys_is_printed(folder, number, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    every = commands(folder)
    assert len(every) == 20
    name, arguments = list(every.items())[number]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    shown = result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), name
    for line in shown.split("\n"):
        assert line.isprintable(), (name, line)
        assert line != "0 of 0 files whole", "a name began a line of its own"
    assert shown.count("0 of 0 files whole") == 0 or "\\n0 of 0 files whole" in shown


def test_colors_are_the_only_escapes(folder, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for arguments in (["verify", folder], ["ls", folder]):
        shown = CliRunner().invoke(main, list(map(str, arguments)), color=True).output
        assert "\x1b[31m" in shown
        for color in ("\x1b[31m", "\x1b[32m", "\x1b[0m"):
            shown = shown.replace(color, "")
        assert all(line.isprintable() for line in shown.split("\n"))


def test_a_spreadsheet_finds_no_formula(folder):
    path = next(path for path in folder.iterdir() if path.name.startswith("="))
    shown = CliRunner().invoke(main, ["history", str(path), "--csv"]).output
    cells = [cell for row in csv.reader(io.StringIO(shown)) for cell in row]
    assert any("=1+1" in cell for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "-")]


def test_all_text_goes_through_one_function():
    """``click.echo`` prints what it is given; only ``printing.py`` may call it."""
    for path in Path(fitkit.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and path.name != "printing.py":
                assert ast.unparse(node) not in ("click.echo", "click.secho", "sys.stdout"), path
