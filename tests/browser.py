"""Real Chromium, by chromedriver's plain HTTP (the WebDriver standard): no package is needed."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def needed() -> None:
    """Skip without Chromium; fail instead if KGON_REQUIRE_ALL is set."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        why = f"needs {' and '.join(missing)}: apt-get install chromium chromium-driver"
        if os.environ.get("KGON_REQUIRE_ALL"):
            pytest.fail(why)
        pytest.skip(why)


class Browser:
    """One window; a context manager.

    Args:
        profile: an empty folder.
        width, height: of the window, in CSS pixels.
        dark: whether the user prefers dark pages.
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 900, dark: bool = False):
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                self._url = f"http://127.0.0.1:{found[1]}/session"
                break
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        try:
            started = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
            self._url += f"/{started['sessionId']}"
            # Headless windows have a least width; phones do not.
            self.command(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.command("Emulation.setEmulatedMedia", {"features": [scheme]})
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            requests.delete(self._url, timeout=30)
        finally:
            self._driver.terminate()
            self._driver.communicate()

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        value = requests.post(self._url + path, json=body, timeout=60).json()["value"]
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        """A command of Chromium's own protocol."""
        return self._ask("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        self._ask("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a function body in the page."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def console(self) -> list[str]:
        """What the console said since the last time."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """The addresses that pages asked for since the last time."""
        entries = self._ask("/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    def picture(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(requests.get(f"{self._url}/screenshot", timeout=60).json()["value"])
        )
