"""The group: help, exit codes, errors as sentences, the program as a process."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import fitkit
from fitkit.cli import all_commands, command_group

ROOT = Path(fitkit.__file__).parents[1]
COMMANDS = {name: all_commands.main.get_command(None, name) for name in all_commands.main.modules}


def start(*arguments, program=("-m", "fitkit"), **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output.decode(), errors.decode()


def test_the_commands_are_there(cli):
    assert {"diff", "export", "inspect", "ls", "merge", "prune", "split", "verify"} <= set(COMMANDS)
    shown = cli("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", shown, re.MULTILINE)
        assert f"  fitkit {name} " in shown
    assert "..." not in shown.split("Commands")[1], "a summary is too long for its line"
    assert fitkit.__version__ in cli("--version").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_names_the_exit_codes(cli, name):
    shown = cli(name, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    command = COMMANDS[name]
    assert command.examples
    assert all(one.split()[0] == name for one in command.examples)
    codes = re.findall(r"^  (\d)  ", shown.split("Exit codes:")[1], re.MULTILINE)
    assert codes == (["0", "1", "2", "3"] if command.exit_1 else ["0", "2", "3"])


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_parsed(name):
    """Every option in an example is one that the command has."""
    command = COMMANDS[name]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for example in command.examples:
        own = re.split(r"[|&]", example)[0]
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", own)) <= known


def test_wrong_usage(cli):
    assert "No such command" in cli("nothing", code=2).stderr
    assert "Missing argument" in cli("inspect", code=2).stderr
    assert "No such option" in cli("ls", "--nothing", code=2).stderr


@pytest.mark.parametrize("name", ["inspect", "verify", "ls", "prune", "split", "merge"])
def test_what_is_not_there(cli, name, tmp_path):
    more = ["--keep-last", "1"] if name == "prune" else []
    result = cli(name, tmp_path / "nothing.pth", *more, code=3)
    assert "nothing" in result.output


def test_a_system_error_is_a_sentence(cli, monkeypatch, tmp_path):
    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rglob", refuse)
    assert "Permission denied." in cli("ls", tmp_path, code=3).stderr


def test_an_interrupt(cli, monkeypatch, run):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("fitkit.cli.inspect.overview", interrupt)
    cli("inspect", run / "best.pth", code=130)


def test_a_bug_is_not_hidden(monkeypatch, cli, run):
    def fail(path):
        raise ZeroDivisionError

    monkeypatch.setattr("fitkit.cli.inspect.overview", fail)
    with pytest.raises(ZeroDivisionError):
        cli("inspect", run / "best.pth")


def test_all_commands_are_of_our_class():
    for command in COMMANDS.values():
        assert isinstance(command, command_group.Command)
        assert isinstance(command, click.Command)


# ---- processes ----------------------------------------------------------------------------------


def test_the_module_as_a_program(run, damage):
    damage(run / "epochs" / "01.pth")
    calls = [("inspect", "best.pth"), ("verify", "."), ("inspect", "nothing.pth")]
    processes = [start(*call, cwd=run) for call in calls]
    fine, verdict, sentence = map(finish, processes)
    assert (fine[0], fine[2]) == (0, "")
    assert "4 epochs done" in fine[1]
    assert (verdict[0], verdict[2]) == (1, "")
    assert "damaged" in verdict[1]
    assert "\x1b" not in verdict[1], "colors are for terminals"
    assert (sentence[0], sentence[1]) == (3, "")
    assert sentence[2].count("\n") == 1


def test_the_installed_script_is_the_same_program(run):
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1]
    (declared,) = re.findall(r'^fitkit = "(.*)"$', scripts, re.MULTILINE)
    entry = importlib.metadata.EntryPoint("fitkit", declared, "console_scripts")
    assert entry.load() is all_commands.run
    called = f"from {entry.module} import {entry.attr} as program; program()"
    code, output, _ = finish(start("ls", run, program=("-c", called)))
    assert code == 0
    assert "best.pth" in output


def test_a_pipe_that_is_closed_early(run):
    process = start("diff", run / "epochs" / "01.pth", run / "best.pth")
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(300) == -13  # the signal that ends cat as well
    assert errors == ""
