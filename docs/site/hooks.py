"""What the site takes from outside of ``docs/``, and where links to it lead then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages at the top of the repository and the examples are part of the site."""
    examples = (ROOT / "examples").rglob("*")
    paths = [ROOT / name for name in BESIDE] + sorted(p for p in examples if p.suffix != ".pyc")
    for path in filter(Path.is_file, paths):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """In the repository they lie beside ``docs/``, on the site in its root."""
    if page.file.src_uri in BESIDE:
        return re.sub(r"\]\(docs/", "](", markdown)
    up = "../" * (page.file.src_uri.count("/") + 1)
    return markdown.replace(f"]({up}", f"]({up.removeprefix('../')}")
