"""The page as text: whole, and no data in it is taken for anything else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from fitkit.reporting.gather import gather_folder
from fitkit.reporting.page import render

WICKED = [
    "</script><script>alert(1)</script>",
    "<!--",
    "&lt;",
    "\u2028",
    "$title",
    "'\"`\\",
    "\ud800",
]


class Reader(HTMLParser):
    """Collects tags with their attributes, and what stands in scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts, self.title = [("", {})], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.tags.append(("", {}))

    def handle_data(self, data):
        if self.tags[-1][0] == "script":
            self.scripts[-1] += data
        if self.tags[-1][0] == "title":
            self.title += data


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.fixture
def data(finished_run):
    return gather_folder(finished_run, verify=False)


def shown_data(page):
    return json.loads(read(page).scripts[0])


@pytest.mark.parametrize("wicked", WICKED)
def test_names_do_no_harm(data, wicked):
    plain = read(render(data))
    data = {
        **data,
        "title": wicked,
        "columns": {**data["columns"], wicked: [0.0]},
        "notes": [wicked],
    }
    page = render(data)
    page.encode("utf-8")
    assert [tag for tag, _ in read(page).tags] == [tag for tag, _ in plain.tags]
    assert read(page).scripts[1:] == plain.scripts[1:]
    assert shown_data(page)["notes"] == [wicked]
    assert read(page).title.strip() == wicked.replace("\ud800", "?").strip()


def test_the_page_stands_alone(data):
    page = render(data)
    for tag, attributes in read(page).tags:
        assert "src" not in attributes
        assert attributes.get("href", "data:").startswith("data:")
        assert tag not in ("iframe", "object", "embed", "base", "img")
    assert not re.search(r"\bfetch\(|XMLHttpRequest|@import|url\(", page)


def test_the_page_allows_its_own_scripts_only(data):
    reader = read(render(data))
    policy = next(a["content"] for _, a in reader.tags if "Policy" in a.get("http-equiv", ""))
    assert policy.startswith("default-src 'none';")
    for script in reader.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy.partition("script-src")[2]


def test_numbers_are_short_and_those_that_are_not_finite_are_told_apart(data):
    data = {**data, "columns": {"a": [1 / 3, math.nan, math.inf, -math.inf, 1e-300]}}
    column = shown_data(render(data))["columns"]["a"]
    assert column == [0.3333333, None, "Infinity", "-Infinity", 1e-300]
