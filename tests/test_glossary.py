"""One word for one thing: identifiers that were renamed do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
HEADING = "\n## Former names\n"
FILES = sorted(
    path
    for folder in ("fitkit", "tests", "examples", "docs")
    for path in (ROOT / folder).rglob("*.py")
)


def former_names(page: str) -> dict[str, str]:
    """The table of former names: an identifier, and what it is called today."""
    table = page.partition(HEADING)[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", table, re.MULTILINE))


FORMER = former_names(GLOSSARY.read_text(encoding="utf-8"))


def identifiers(source: str) -> set[str]:
    """Every identifier of a program, file names of imports included; no keys and no prose."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_the_table_is_read():
    assert len(FORMER) > 40
    assert FORMER["HandlerView"] == "BaseHandler"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_identifier_is_a_former_name(path):
    found = identifiers(path.read_text(encoding="utf-8")) & FORMER.keys()
    assert not found, {name: FORMER[name] for name in found}


def test_no_file_has_a_former_name():
    assert not {path.stem.removeprefix("test_") for path in FILES} & FORMER.keys()


def test_today_s_names_exist():
    """A name of today is an identifier of the library, or one of its files."""
    library = [path for path in FILES if path.is_relative_to(ROOT / "fitkit")]
    known = set().union(*(identifiers(path.read_text(encoding="utf-8")) for path in library))
    missing = {
        name
        for name in FORMER.values()
        if not ((ROOT / "fitkit" / name).is_file() if "/" in name else name in known)
    }
    assert not missing


def test_prose_and_keys_are_no_identifiers():
    assert identifiers('x = {"told": 1}  # told\n"""told"""\n') == {"x"}
    assert "told" in identifiers("from a import told\n")
