"""What the site takes from outside of ``docs/``, and where links to it lead then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# A page named README.md would be taken for the index of its folder.
BESIDE = {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md")} | {"README.md": "read-me.md"}
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages at the top of the repository and the examples are part of the site."""
    examples = (path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.*"))
    taken = BESIDE | {name: name for name in sorted(examples) if "__pycache__" not in name}
    for name, place in taken.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """In the repository they lie beside ``docs/``, on the site in its root."""
    is_beside = page.file.src_uri in BESIDE.values()
    up = "../" * page.file.src_uri.count("/")

    def placed(found: re.Match[str]) -> str:
        path, hash_, anchor = found[0].partition("#")
        if is_beside:
            path = path.removeprefix("docs/")
        elif path.startswith(f"{up}../"):
            path = up + path.removeprefix(f"{up}../")
        folder, _, name = path.rpartition("/")
        path = "/".join(filter(None, (folder, BESIDE.get(name, name))))
        return path + hash_ + anchor

    return LINK.sub(placed, markdown)
