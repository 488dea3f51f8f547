import math
import xml.etree.ElementTree as ElementTree

import pytest

from fitkit.core.html import Html, curve, table


def test_what_comes_from_outside_is_escaped():
    shown = table([["<script>", Html("<b>bold</b>")]], ["a & b"])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<b>bold</b>" in shown
    assert "a &amp; b" in shown
    assert '"><script>' not in curve({'"><script>': [1.0, 2.0]})


def points(svg, number=0):
    lines = [one for one in ElementTree.fromstring(svg) if one.tag.endswith("polyline")]
    return [tuple(map(float, pair.split(","))) for pair in lines[number].get("points").split()]


def test_a_curve_goes_from_corner_to_corner():
    assert points(curve({"a": [0.0, 1.0, 2.0]}, width=106, height=56)) == [
        (3, 53),
        (53, 28),
        (103, 3),
    ]


def test_lines_share_their_scale():
    svg = curve({"a": [0.0, 1.0], "b": [2.0, 1.0]}, width=106, height=56)
    assert points(svg) == [(3, 53), (103, 28)]
    assert points(svg, 1) == [(3, 3), (103, 28)]


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(gap):
    assert len(points(curve({"a": [1.0, gap, 3.0], "b": [gap]}))) == 2


def test_few_points_and_none():
    assert "<circle" in curve({"a": [1.0]})
    assert curve({"a": []}) == curve({"a": [math.nan]}) == ""
    assert len(points(curve({"flat": [2.0, 2.0]}))) == 2


def test_a_long_line_is_thinned_and_keeps_its_end():
    found = points(curve({"a": [float(i) for i in range(100_000)]}))
    assert len(found) <= 401
    assert found[-1] == (217, 3)
