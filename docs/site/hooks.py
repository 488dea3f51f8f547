"""Adds pages from outside of ``docs/`` to the site, and adapts the links to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# mkdocs would use a page named README.md as the index of its folder.
ROOT_PAGES = {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md")} | {
    "README.md": "read-me.md"
}
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository, and the examples."""
    examples = (path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.*"))
    added = ROOT_PAGES | {name: name for name in sorted(examples) if "__pycache__" not in name}
    for name, uri in added.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Adapt links: on the site, ``docs/`` and the root of the repository are one folder."""
    is_root_page = page.file.src_uri in ROOT_PAGES.values()
    up = "../" * page.file.src_uri.count("/")

    def adapted(found: re.Match[str]) -> str:
        path, hash_, anchor = found[0].partition("#")
        if is_root_page:
            path = path.removeprefix("docs/")
        elif path.startswith(f"{up}../"):
            path = up + path.removeprefix(f"{up}../")
        folder, _, name = path.rpartition("/")
        path = "/".join(filter(None, (folder, ROOT_PAGES.get(name, name))))
        return path + hash_ + anchor

    return LINK.sub(adapted, markdown)
