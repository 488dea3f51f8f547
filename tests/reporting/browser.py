"""A real browser for pages: Debian's chromium, driven by selenium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_SECONDS = 20


class Browser:
    """One window; what it looks like, and what it did."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a page anew, as if for the first time."""
        self.resize(width, height)
        self.emulate(scheme)
        self.driver.get(path.as_uri())
        self.run("sessionStorage.clear()")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        self.wait_until("return document.querySelector('footer') !== null")
        self.flush()

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def emulate(self, scheme: str, media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        settings = {"features": features, "media": media}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", settings)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def flush(self) -> None:
        """Wait until what was asked for is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def wait_until(self, script: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.run(script):
            assert time.monotonic() < deadline, f"never became true: {script}"
            time.sleep(0.02)

    def panel(self, name: str) -> Any:
        return self.run(
            "return [...document.querySelectorAll('.panel')]"
            ".find(panel => panel.dataset.name === arguments[0])",
            name,
        )

    def plot(self, name: str) -> Any:
        return self.panel(name).find_element(By.CSS_SELECTOR, "svg.plot")

    def texts(self, inside: Any, selector: str) -> list[str]:
        script = "return [...arguments[0].querySelectorAll(arguments[1])].map(e => e.textContent)"
        found: list[str] = self.run(script, inside, selector)
        return found

    def x_of(self, name: str, epoch: float) -> float:
        """Where an epoch is, read off the labels of the axis: pixels from the plot's middle."""
        labels = self.run(
            "return [...arguments[0].querySelectorAll('text.x')]"
            ".map(t => [Number(t.textContent), Number(t.getAttribute('x'))])",
            self.plot(name),
        )
        (first, left), (last, right) = labels[0], labels[-1]
        width = self.run("return arguments[0].getBoundingClientRect().width", self.plot(name))
        return float(left + (epoch - first) / (last - first) * (right - left) - width / 2)

    def point_at(self, name: str, epoch: float) -> None:
        x = round(self.x_of(name, epoch))
        actions = ActionChains(self.driver, duration=0)
        actions.move_to_element_with_offset(self.plot(name), x, 0).perform()
        self.flush()

    def drag(self, name: str, first: float, last: float) -> None:
        start, end = round(self.x_of(name, first)), round(self.x_of(name, last))
        actions = ActionChains(self.driver, duration=0)
        actions.move_to_element_with_offset(self.plot(name), start, 0).click_and_hold()
        actions.move_by_offset((end - start) // 2, 0).move_by_offset(
            end - start - (end - start) // 2, 0
        )
        actions.release().perform()
        self.flush()

    def tip(self, name: str) -> list[str]:
        """The cells of the tooltip; none while it is hidden."""
        panel = self.panel(name)
        if self.run("return arguments[0].querySelector('.tip').hidden", panel):
            return []
        return self.texts(panel, ".tip td")

    def axis(self, name: str, which: str = "x") -> list[str]:
        return self.texts(self.plot(name), f"text.{which}")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, the page itself included."""
        events = [
            json.loads(one["message"])["message"] for one in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def running_browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; without one installed the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    helper = shutil.which("chromedriver")
    if found is None or helper is None:
        pytest.skip(
            "the report's page is tested in a real browser, and there is none: install chromium "
            "and chromedriver (on Debian: apt-get install -y chromium chromium-driver)."
        )
    options = Options()
    options.binary_location = found
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(helper))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
