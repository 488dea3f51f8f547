"""The report as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from fitkit.version import __version__


def render(data: Mapping[str, Any]) -> str:
    """The page as text; it needs no network, and nothing in ``data`` is executed.

    Args:
        data: what ``gather_folder`` or ``gather_live`` returned.
    """
    scripts = [_resource("chart.js"), _resource("page.js")]
    title = str(data["title"]).encode("utf-8", "replace").decode("utf-8")
    return Template(_resource("page.html")).substitute(
        title=html.escape(title),
        version=html.escape(__version__),
        allowed=" ".join(map(_policy_hash, scripts)),
        style=_resource("page.css"),
        data=_as_json(data),
        chart=scripts[0],
        page=scripts[1],
    )


@cache
def _resource(name: str) -> str:
    return resources.files("fitkit.reporting").joinpath(name).read_text(encoding="utf-8")


def _policy_hash(script: str) -> str:
    """The hash of a script in the page's Content Security Policy, which allows no other scripts."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _as_json(data: Mapping[str, Any]) -> str:
    """JSON without the characters that have a meaning in HTML, to stand in a script element."""
    columns = {name: [_number(v) for v in values] for name, values in data["columns"].items()}
    text = json.dumps({**data, "columns": columns}, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: float) -> float | str | None:
    """A value with seven digits; NaN is null."""
    if math.isfinite(value):
        return float(f"{value:.7g}")
    return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
