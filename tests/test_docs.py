"""The code on every page runs and prints the shown output, and every link has a target."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  its first import sets environment variables
import torch
from tqdm import tqdm

import fitkit
from fitkit import Callback, NNHandler
from fitkit.checkpointing.savers.saved_files import CHECKPOINT_KEYS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# On a page whose code uses packages that the tests do not install.
NEEDED = re.compile(r"^<!-- needs: (.+) -->$", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path) -> list[tuple[str, str, str | None]]:
    """Each Python block: its padding to the right line, its code, and the shown output."""
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    blocks = []
    for number, match in enumerate(found):
        if match.group(1) != "python":
            continue
        following = found[number + 1] if number + 1 < len(found) else None
        is_output = (
            following is not None
            and following.group(1) == "text"
            and not text[match.end() : following.start()].strip()
        )
        shown = following.group(2) if is_output else None
        line = text.count("\n", 0, match.start(2))
        blocks.append(("\n" * line, match.group(2), shown))
    return blocks


def import_needed(page: Path) -> None:
    """Import the packages that a page names, or skip its test."""
    needed = NEEDED.search(page.read_text())
    for name in needed.group(1).split(", ") if needed else ():
        pytest.importorskip(name)  # without their warnings


def without_code(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The fragments of the headings of a page."""
    headings = HEADING.findall(without_code(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# peft 0.21 uses a name that transformers 5.24 has deprecated
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(p)], ids=name_of)
def test_code_runs_and_prints_the_shown_output(page, tmp_path, monkeypatch, capsys):
    import_needed(page)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # bars of datasets leave a thread behind
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")  # checkpoints store the classes of a page with its module
    monkeypatch.setitem(sys.modules, "page", module)
    for padding, code, shown in code_blocks(page):
        capsys.readouterr()
        exec(compile(padding + code, str(page), "exec"), vars(module))
        if shown is not None:
            assert capsys.readouterr().out == shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_has_a_target(page):
    for target in LINK.findall(without_code(page)):
        path, _, fragment = target.partition("#")
        linked = page if not path else page.parent / path
        assert linked.exists(), f"{name_of(page)} links to {target}"
        if fragment:
            assert fragment in anchors(linked), f"{name_of(page)} links to {target}"


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links_of(index)}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != index} <= linked


def links_of(page: Path) -> list[str]:
    return LINK.findall(without_code(page))


def test_the_documented_keys_are_those_of_a_checkpoint():
    rows = re.findall(
        r"^\| (`.*?) \|", (ROOT / "docs" / "checkpoints.md").read_text(), re.MULTILINE
    )
    documented = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    state = NNHandler(torch.nn.Linear, in_features=1, out_features=1).get_state_dict()
    assert sorted(documented) == sorted(state)


def test_the_gallery_shows_every_callback_and_what_it_saves():
    text = (ROOT / "docs" / "gallery.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    exported = {name: getattr(fitkit, name) for name in fitkit.__all__}
    callbacks = {
        name: value
        for name, value in exported.items()
        if isinstance(value, type) and issubclass(value, Callback) and value is not Callback
    }
    assert set(sections) == set(callbacks)
    for name, section in sections.items():
        saved = section.partition("\nIn a checkpoint: ")[2]
        keys = [CHECKPOINT_KEYS.get(field, field) for field in callbacks[name].state_fields]
        assert re.findall(r"`(\w+)`", saved) == keys, name
        assert name in re.search(r"```python\n(.*?)```", section, re.DOTALL)[1] or name == "History"


def test_the_architecture_page_names_existing_files():
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "fitkit"
    top = {path.name for path in package.glob("*.py")} - {"__init__.py", "version.py"}
    assert top == set(re.findall(r"^  (\w+\.py) ", text, re.MULTILINE))
    assert {path.parent.name for path in package.glob("*/__init__.py")} == set(
        re.findall(r"^  (\w+)/ ", text, re.MULTILINE)
    )
    assert {path.parent.name for path in package.glob("*/*/__init__.py")} == set(
        re.findall(r"^    (\w+)/ ", text, re.MULTILINE)
    )
    paths = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert len(paths) > 50
    for path in paths:
        assert (package / path).exists() or (ROOT / path).exists(), path
    steps = re.findall(r"^\| `(\S+\.py)` \| `([\w.]+)` \|", text, re.MULTILINE)
    assert len(steps) > 20
    for path, names in steps:
        defined = re.findall(r"(?:def|class) (\w+)", (package / path).read_text())
        assert set(names.split(".")) <= set(defined), (path, names)


def test_readme_has_two_commands_and_ci_runs_them():
    commands = [
        body for kind, body in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "bash"
    ]
    assert len(commands) == 2
    for command, what in zip(commands, ("examples/digits.py", "-m pytest"), strict=True):
        assert "python3 -m venv" in command
        assert what in command
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert not any(what in script for what in ("examples/digits.py", "-m pip"))
