"""Chromium without a window, as Debian's packages chromium and chromium-driver have it; without it, tests are skipped."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

HOW = "apt-get install chromium chromium-driver"


def missing() -> str:
    """What is missing for a browser, "" where nothing is."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install selenium"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    return "" if chromium and shutil.which("chromedriver") else f"there is no Chromium with its driver: {HOW}"


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A fresh browser; skips the test where there is none."""
    why = missing()
    if why:
        pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # selenium's own sockets
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        try:
            found = Browser(driver)
            found.resize(width, height)
            yield found
        finally:
            driver.quit()


class Browser:
    """The few things that tests ask of a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        """Opens a file, and waits until its charts are there."""
        self.driver.get(page.as_uri())
        self.wait("!document.querySelector('.chart') || document.documentElement.dataset.charts === 'shown'")

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Waits until an expression of JavaScript is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(f"return {condition}")
        )

    def run(self, expression: str, *arguments: Any) -> Any:
        """The value of an expression of JavaScript."""
        return self.driver.execute_script(f"return ({expression})", *arguments)

    def find(self, selector: str) -> Any:
        """The first element that a selector of CSS names."""
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        """Clicks in the middle of an element, as a mouse does."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver, duration=10).move_to_element(element).click().perform()

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=10).send_keys(*keys).perform()

    def emulate(self, **features: str) -> None:
        """Makes the page believe in features of media, as prefers_color_scheme="dark"."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Changes the size of the window."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    def complaints(self) -> list[str]:
        """Messages of the console since the last call that are more than information."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]

    def requests(self) -> list[str]:
        """Addresses that the pages asked for since the last call, but for files and data that are in the page."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
        return [address for address in asked if not address.startswith(("file:", "data:", "blob:", "chrome:"))]
