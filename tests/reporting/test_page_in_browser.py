"""The page in a real browser: what people see and do."""

from __future__ import annotations

import base64
import importlib.util
import math
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fitkit.reporting.gather import gather_folder
from fitkit.reporting.page import render

_SPEC = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)

WICKED = '</script><img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>'
LONG = "a_metric_whose_name_somebody_wrote_without_thinking_of_phones/" * 3
EPOCHS = 40
LOSS = [2.0 / (epoch + 1) for epoch in range(EPOCHS)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with helpers.running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def data_of(columns, **more):
    epochs = max(map(len, columns.values()))
    status = {"running": False, "text": None, "last_epoch": None, "reload_seconds": None}
    lists = ("best", "lanes", "sections", "weights", "callbacks", "environment", "notes")
    return {
        "title": "a run",
        "status": status,
        "progress": {"epoch": epochs},
        "epochs": list(range(1, epochs + 1)),
        "columns": columns,
        **{name: [] for name in (*lists, "checkpoints", "logs")},
        **more,
    }


def written(folder, data):
    path = folder / "page.html"
    path.write_text(render(data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    columns = {
        "loss": LOSS,
        "val_loss": [value + 0.5 for value in LOSS],
        "accuracy": [1 - value / 3 for value in LOSS],
        "lr": [0.1] * 20 + [0.01] * 20,
    }
    marks = [{"epoch": 12, "text": "saved a.pth", "kind": "best"}]
    marks.append({"epoch": 30.5, "text": "saved b.pth", "kind": "plain"})
    lanes = [{"label": "Checkpoints", "marks": marks}]
    return written(tmp_path_factory.mktemp("page"), data_of(columns, lanes=lanes))


@pytest.fixture
def shown(browser, page):
    browser.open(page)
    return browser


# ---- seeing -------------------------------------------------------------------------------------


def test_hovering_shows_the_values_at_the_epoch(shown):
    assert shown.tip("loss") == []
    for epoch in (10, 25):
        shown.point_at("loss", epoch)
        values = [f"{LOSS[epoch - 1] + extra:.5g}" for extra in (0, 0.5)]
        assert shown.tip("loss") == [
            f"epoch {epoch}", "", "training", values[0], "validation", values[1]
        ]  # fmt: skip
        assert shown.texts(shown.panel("loss"), ".legend b") == values
    assert shown.texts(shown.panel("lr"), ".legend b") == ["0.01"]  # the others show the same epoch
    assert shown.tip("lr") == []
    ActionChains(shown.driver).move_to_element(
        shown.driver.find_element(By.TAG_NAME, "h1")
    ).perform()
    assert shown.tip("loss") == []
    assert shown.texts(shown.panel("loss"), ".legend b")[0] == f"{LOSS[-1]:.5g}"


def test_the_tooltip_stays_inside_the_window(shown):
    for epoch in (1, EPOCHS):
        shown.point_at("lr", epoch)
        box = shown.run(
            "return arguments[0].querySelector('.tip').getBoundingClientRect()", shown.panel("lr")
        )
        assert box["left"] >= 0
        assert box["right"] <= 1280


def test_axes_have_sensible_ticks(shown):
    assert shown.axis("loss") == ["10", "20", "30", "40"]
    assert shown.axis("loss", "y") == ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]
    assert shown.axis("lr", "y") == ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]


def test_what_happened_is_told_at_its_epoch(shown):
    plot = shown.driver.find_element(By.CSS_SELECTOR, "#timeline svg.plot")
    assert len(plot.find_elements(By.CSS_SELECTOR, ".mark")) == 2
    plot.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 11)
    cells = shown.texts(shown.driver.find_element(By.ID, "timeline"), ".tip td")
    assert cells == ["epoch 12", "", "Checkpoints", "saved a.pth"]
    assert shown.texts(shown.driver.find_element(By.ID, "timeline"), ".when") == [
        "epoch 31",
        "epoch 12",
    ]


# ---- zooming ------------------------------------------------------------------------------------


def test_dragging_zooms_all_charts_and_a_double_click_shows_all(shown):
    before = shown.axis("loss"), shown.axis("loss", "y")
    shown.drag("loss", 20, 30)
    for name in ("loss", "accuracy"):
        labels = [int(label) for label in shown.axis(name)]
        assert labels[0] >= 19
        assert labels[-1] <= 31
    assert shown.axis("loss", "y") != before[1]  # the values in sight decide
    ActionChains(shown.driver).double_click(shown.plot("accuracy")).perform()
    shown.flush()
    assert (shown.axis("loss"), shown.axis("loss", "y")) == before
    shown.drag("lr", 5, 10)
    button = shown.driver.find_element(By.ID, "reset")
    button.click()
    assert shown.axis("loss") == before[0]
    assert not button.is_enabled()


def test_a_click_is_no_drag_and_a_tiny_range_is_one_epoch(shown):
    before = shown.axis("loss")
    shown.drag("loss", 20, 20.1)
    assert shown.axis("loss") == before
    shown.plot("loss").send_keys(*["+"] * 20)
    assert len(shown.axis("loss")) in (1, 2)
    shown.plot("loss").send_keys(*["-"] * 20)
    assert shown.axis("loss") == before


def test_all_of_it_works_by_keys(shown):
    plot = shown.plot("loss")
    plot.send_keys(Keys.HOME)
    assert shown.tip("loss")[0] == "epoch 1"
    plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert shown.tip("loss")[0] == "epoch 2"
    assert "epoch 2" in shown.texts(shown.panel("loss"), "[aria-live]")[0]
    plot.send_keys(Keys.END)
    assert shown.tip("loss")[0] == "epoch 40"
    plot.send_keys("+", "+")
    zoomed = shown.axis("loss")
    assert int(zoomed[0]) >= 30
    plot.send_keys(Keys.HOME)  # the range follows the cursor
    assert int(shown.axis("loss")[-1]) <= 12
    plot.send_keys(Keys.ESCAPE)
    assert shown.axis("loss") == ["10", "20", "30", "40"]
    names = shown.run(
        "return [...document.querySelectorAll('svg.plot')]"
        ".map(plot => [plot.tabIndex, plot.getAttribute('aria-label')])"
    )
    assert all(index == 0 and label for index, label in names)


def test_a_log_scale_can_be_chosen_and_survives_a_reload(shown):
    linear = shown.axis("loss", "y")
    shown.panel("loss").find_element(By.TAG_NAME, "button").click()
    logarithmic = shown.axis("loss", "y")
    assert logarithmic == ["0.1", "1"]
    assert shown.axis("lr", "y") != logarithmic  # each chart has its own
    shown.wait_until("return sessionStorage.length > 0")
    time.sleep(1.0)  # the browser hands what is stored on to its other processes in its own time
    shown.driver.refresh()
    shown.flush()
    assert shown.axis("loss", "y") == logarithmic
    shown.panel("loss").find_element(By.TAG_NAME, "button").click()
    assert shown.axis("loss", "y") == linear


# ---- curves -------------------------------------------------------------------------------------


def test_missing_values_are_gaps_and_lonely_ones_points(browser, tmp_path):
    nan, inf = math.nan, math.inf
    columns = {"loss": [1.0, 2.0, nan, 3.0, inf, 1.0, 2.0, nan], "x": [0.0, -1.0, 5.0, 50.0]}
    columns["x"] += [nan] * 4
    browser.open(written(tmp_path, data_of(columns)))
    path = browser.run(
        "return arguments[0].querySelector('path.curve').getAttribute('d')", browser.plot("loss")
    )
    assert path.count("M") == 3
    assert path.count("L") == 2
    assert len(browser.texts(browser.plot("loss"), "circle.dot")) == 1
    browser.plot("loss").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 4)
    assert browser.tip("loss")[-1] == "∞"
    browser.plot("loss").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.tip("loss")[-1] == "\u2013"
    browser.panel("x").find_element(By.TAG_NAME, "button").click()  # log: 0 and below are gaps
    path = browser.run(
        "return arguments[0].querySelector('path.curve').getAttribute('d')", browser.plot("x")
    )
    assert path.count("M") == path.count("L") == 1


def test_one_epoch_is_a_point(browser, tmp_path):
    browser.open(
        written(tmp_path, data_of({"loss": [0.5], "val_loss": [0.7], "zero": [0.0], "lr": [1e-7]}))
    )
    assert len(browser.texts(browser.plot("loss"), "circle.dot")) == 2
    assert browser.axis("loss") == ["1"]
    assert not browser.panel("zero").find_element(By.TAG_NAME, "button").is_enabled()
    labels = browser.axis("lr", "y")
    assert len(labels) == len(set(labels)) > 2
    assert browser.complaints() == []


@pytest.mark.parametrize(
    "columns", [{"loss": []}, {"loss": [math.nan] * 3}, {"loss": [1e300, -1e300, 1e-300]}]
)
def test_hardly_anything_to_show(browser, tmp_path, columns):
    browser.open(written(tmp_path, data_of(columns)))
    assert browser.complaints() == []
    assert not browser.run("return document.body.innerHTML.includes('NaN')")


def test_a_thousand_epochs_of_twenty_metrics_stay_quick(browser, tmp_path):
    columns = {
        f"{part}metric_{number}": [math.sin(number + epoch / 50) + 2 for epoch in range(1000)]
        for number in range(10)
        for part in ("", "val_")
    }
    began = time.monotonic()
    browser.open(written(tmp_path, data_of(columns)))
    browser.drag("metric_0", 200, 800)
    assert time.monotonic() - began < 15
    redrawn = browser.run("const t = performance.now(); view.reset(); return performance.now() - t")
    assert redrawn < 2000
    moved = browser.run(
        "const t = performance.now(); for (let i = 0; i < 20; i++) view.point(i);"
        "return performance.now() - t"
    )
    assert moved < 2000


def test_a_million_points_are_thinned(browser, tmp_path):
    browser.open(
        written(tmp_path, data_of({"loss": [math.sin(epoch) for epoch in range(100_000)]}))
    )
    path = browser.run(
        "return arguments[0].querySelector('path.curve').getAttribute('d')", browser.plot("loss")
    )
    assert path.count("L") < 3000
    heights = [float(point.split()[1]) for point in path[1:].split("L")]
    assert max(heights) - min(heights) > 100


# ---- looks --------------------------------------------------------------------------------------


def luminance(color):
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_and_all_of_it_readable(browser, page, scheme):
    browser.open(page, scheme=scheme)

    def style(selector, name):
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return browser.run(script, selector, name)

    background, card = style("body", "backgroundColor"), style(".card", "backgroundColor")
    assert (luminance(background) > 0.5) is (scheme == "light")
    for selector in ("h1", "#status", "footer", ".legend", ".bar .note"):
        assert contrast(style(selector, "color"), background) >= 4.5, selector
    assert contrast(style("svg.plot text.y", "fill"), card) >= 4.5
    for curve in (".curve.train", ".curve.val"):
        assert contrast(style(curve, "stroke"), card) >= 3


def test_nothing_is_wider_than_a_phone(browser, tmp_path, finished_run):
    data = gather_folder(finished_run)
    data["columns"] = {
        **data["columns"],
        LONG: data["columns"]["loss"],
        WICKED: data["columns"]["lr"],
    }
    data["checkpoints"][0]["name"] = data["title"] = data["environment"][0][1] = LONG
    data["lanes"][0]["label"] = LONG
    for width in (360, 800, 1280):
        browser.open(written(tmp_path, data), width=width)
        wide = browser.run(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide[0] <= wide[1], width
    browser.resize(360)
    browser.flush()
    assert browser.run(
        "return [...document.querySelectorAll('.scroll')]"
        ".every(e => e.scrollWidth <= e.clientWidth)"
    )


def test_it_prints_without_buttons(browser, page):
    browser.open(page, scheme="dark")
    browser.emulate("dark", media="print")
    assert (
        browser.run("return getComputedStyle(document.querySelector('button')).display") == "none"
    )
    assert luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) > 0.9
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    browser.emulate("light")


# ---- harm ---------------------------------------------------------------------------------------


def test_names_are_text_whatever_they_say(browser, tmp_path, finished_run):
    data = gather_folder(finished_run)
    data["columns"][WICKED] = data["columns"]["loss"]
    data["lanes"][0]["marks"][0]["text"] = data["lanes"][0]["label"] = WICKED
    data["sections"][0]["rows"][0] = [WICKED, WICKED]
    data["checkpoints"][0].update(name=WICKED, problem=WICKED, marks=[])
    data.update(title=WICKED, notes=[WICKED])
    browser.open(written(tmp_path, data))
    assert browser.driver.title == WICKED
    assert browser.texts(browser.panel(WICKED), "h3") == [WICKED]
    browser.plot(WICKED).send_keys(Keys.HOME)
    assert browser.tip(WICKED)[2] == WICKED
    assert browser.run("return window.harmed") is None
    assert browser.complaints() == []


def test_it_asks_the_network_for_nothing(shown, page):
    shown.point_at("loss", 3)
    shown.drag("loss", 10, 20)
    assert set(shown.requests()) <= {page.as_uri(), "data:,"}
    assert shown.complaints() == []


def test_a_request_would_be_seen_and_is_not_allowed(browser, page, tmp_path):
    other = tmp_path / "other.html"
    image = '<img src="http://127.0.0.1:9/x.png">'
    other.write_text(page.read_text().replace("<footer>", f"{image}<footer>"), encoding="utf-8")
    browser.open(other)
    assert any("Content Security Policy" in one for one in browser.complaints())
    other.write_text(f"<footer>{image}", encoding="utf-8")
    browser.open(other)
    assert "http://127.0.0.1:9/x.png" in browser.requests()


# ---- a run under way ----------------------------------------------------------------------------

LOADED_AT = "return performance.timeOrigin"


def test_it_reloads_while_the_run_is_under_way_unless_it_is_paused(browser, tmp_path):
    status = {"running": True, "text": None, "last_epoch": 50, "reload_seconds": 1}
    path = written(tmp_path, data_of({"loss": LOSS}, status=status))
    browser.open(path)
    first = browser.run(LOADED_AT)
    browser.drag("loss", 10, 20)
    ActionChains(browser.driver).move_to_element(
        browser.driver.find_element(By.TAG_NAME, "h1")
    ).perform()
    browser.run("document.activeElement.blur()")
    browser.wait_until(f"return performance.timeOrigin !== {first!r}")
    browser.flush()
    assert int(browser.axis("loss")[-1]) <= 21  # what was zoomed to stays
    browser.driver.find_element(By.ID, "pause").click()
    paused = browser.run(LOADED_AT)
    time.sleep(1.4)
    assert browser.run(LOADED_AT) == paused


def test_it_does_not_reload_when_the_run_is_over(shown):
    loaded = shown.run(LOADED_AT)
    assert shown.driver.find_elements(By.ID, "pause") == []
    time.sleep(1.4)
    assert shown.run(LOADED_AT) == loaded


def test_without_a_browser_the_tests_are_skipped_and_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = "apt-get install -y chromium chromium-driver"
    with pytest.raises(pytest.skip.Exception, match=said), helpers.running_browser(tmp_path):
        pass
