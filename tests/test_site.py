"""The documentation site builds without warnings, is complete, and makes no network requests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import fitkit

pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "docs" / "site" / "mkdocs.yml"
# Attributes whose address a browser loads, unlike those of links.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
ROOT_PAGES = {"read-me.md", "CONTRIBUTING.md", "CHANGELOG.md"}  # from outside of docs/
ADDRESS_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")


class Page(HTMLParser):
    """Loaded addresses, links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


def is_external(address: str) -> bool:
    return re.match(r"(\w+:)?//", address) is not None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(
        [*command, "-f", str(CONFIGURATION), "-d", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The parsed pages of the site."""
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def test_every_document_is_a_page(site):
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    documents |= {Path(name) for name in ROOT_PAGES}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {path.with_suffix(".html") for path in documents} <= built
    assert not (site / "site").exists()


def test_every_link_has_a_target(pages):
    for path, page in pages.items():
        for link in page.links + page.loads:
            if is_external(link) or link.startswith("mailto:") or path.name == "404.html":
                continue
            name, _, anchor = unquote(link).partition("#")
            target = path if not name else (path.parent / name).resolve()
            assert target.exists(), f"{path.name} refers to {link}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{path.name} links to {link}"


def test_no_page_makes_network_requests(site, pages):
    for path, page in pages.items():
        assert not [one for one in page.loads if is_external(one)], path.name
    for style in site.rglob("*.css"):
        assert not ADDRESS_IN_STYLE.search(style.read_text(encoding="utf-8")), style.name


def test_no_page_shows_raw_markup(pages, site):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        shown = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert ":::" not in shown, path.name
        assert "```" not in shown, path.name
        assert "&gt;&gt;&gt;" not in shown, f"{path.name}: a doctest without a fence"
        assert not re.search(r"^\|.*\|$", shown, re.MULTILINE), f"{path.name}: a broken table"


def names_on_reference_pages() -> list[str]:
    texts = [path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")]
    return re.findall(r"^::: (\S+)$", "\n".join(texts), re.MULTILINE)


def test_every_public_name_is_on_one_page_of_the_reference(pages):
    named = [name for name in names_on_reference_pages() if name.count(".") == 1]
    expected = {f"fitkit.{name}" for name in fitkit.__all__ if name != "__version__"}
    assert sorted(named) == sorted(expected)
    reference = [page for path, page in pages.items() if path.parent.name == "api"]
    anchors = set().union(*(page.anchors for page in reference))
    assert expected <= anchors


def test_the_reference_shows_arguments_and_defaults(site):
    text = (site / "api" / "callbacks.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", text)
    assert "patience: int = 0" in shown
    assert "checks without improvement after which training stops" in shown


def test_every_page_of_the_navigation_exists():
    """Pages that are not listed fail the strict build."""
    text = CONFIGURATION.read_text()
    listed = re.findall(r"^ +- [\w ,-]+: ([\w/-]+\.md)$", text, re.MULTILINE)
    missing = [n for n in set(listed) - ROOT_PAGES if not (ROOT / "docs" / n).exists()]
    assert not missing
