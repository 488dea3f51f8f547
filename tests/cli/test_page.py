"""``docs/command-line.md`` shows what the commands on it print."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import tqdm
from click.testing import CliRunner

from fitkit.cli.all_commands import main

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind):
    return [body for name, body in BLOCK.findall(PAGE.read_text()) if name == kind]


def normalized(text):
    """Without what depends on the machine: sizes, ages, versions, the last digits, widths."""
    text = re.sub(r"\d+(\.\d+)? (B|[KM]iB)\b", "SIZE", text)
    text = re.sub(r"\b\d+ (s|min)$|\b\d+ (s|min)(?=  )", "AGE", text, flags=re.MULTILINE)
    text = re.sub(r"(fitkit|torch) \d+\.\d+[\w.+]*", r"\1 VERSION", text)
    text = re.sub(r"\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.2g}", text)
    return " ".join(text.split())


def commands():
    """Each command with the output below it."""
    for body in blocks("console"):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


@pytest.fixture
def in_the_run(tmp_path, monkeypatch):
    """The folder in which the page's run has ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    monkeypatch.setitem(sys.modules, "page", types.ModuleType("page"))
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), vars(sys.modules["page"]))
    return tmp_path


def test_commands_print_what_the_page_shows(in_the_run):
    codes = {}
    for command, shown in commands():
        program, name, *arguments = shlex.split(command)
        assert program == "fitkit"
        result = CliRunner().invoke(main, [name, *arguments], catch_exceptions=False)
        assert normalized(result.output) == normalized(shown), command
        codes[name] = result.exit_code
        assert max(map(len, shown.splitlines())) <= 100, command
    assert codes.pop("diff") == 1
    assert set(codes.values()) == {0}


def test_every_command_is_on_the_page():
    text = PAGE.read_text()
    assert all(re.search(rf"`{name}[ `]", text) for name in main.modules)


def test_what_is_normalized_is_little():
    assert (
        normalized("a.pth  4  16  0.24657  22.9 KiB  3 s  best") == "a.pth 4 16 0.25 SIZE AGE best"
    )
    assert normalized("0.24657") != normalized("0.34657")
    assert normalized("best last") != normalized("last")
