"""A headless Chromium that opens pages, over the DevTools protocol on two pipes.

The protocol is at https://chromedevtools.github.io/devtools-protocol: messages of JSON, each ended
by a NUL byte, that Chromium reads from file descriptor 3 and writes to 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 120
"""Seconds for an answer; a busy machine takes some for the start alone."""

START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Gives Chromium the two pipes as descriptors 3 and 4."""


def find_chromium() -> str | None:
    """Return the path of Chromium or Chrome; None if there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """A browser without a window, with one tab; it ends with the `with` block.

    Attributes:
        events: what the browser reported, in its order.
    """

    def __init__(self, program: str):
        # A process of the browser that ends late may still write into it.
        self._profile = tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"),
        ]
        start = [sys.executable, "-c", START, str(their_in), str(their_out), program, *flags]
        self._process = subprocess.Popen(
            start, pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL
        )
        os.close(their_in)
        os.close(their_out)
        self.events: list[dict[str, Any]] = []
        self._unread, self._sent, self._session = b"", 0, None

    def __enter__(self) -> "Chromium":
        """Open the tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        """End the browser."""
        try:
            self._session = None
            self.call("Browser.close")
            self._process.wait(20)
        except (subprocess.TimeoutExpired, AssertionError, OSError):
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what a method of the protocol answers."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def wait(self, method: str) -> None:
        """Wait until the browser reports an event that it has not reported yet."""
        while not any(event["method"] == method for event in self.events):
            self._read()

    def open(self, path: Path) -> None:
        """Open a page of a file, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait("Page.loadEventFired")

    def show_as(self, width: int, *, dark: bool = False) -> None:
        """Set the window's width in pixels, and whether the reader prefers dark pages."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str, *, wait: bool = False) -> Any:
        """Return the value of an expression of JavaScript, which JSON can hold.

        Args:
            script: the expression.
            wait: whether it is a promise whose value is wanted.
        """
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=wait
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key by its name, such as `ArrowRight`."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse to a pixel of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def pdf(self) -> bytes:
        """Return the page as it is printed on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        printed = self.call("Page.printToPDF", printBackground=True, **size)
        return base64.b64decode(printed["data"])

    def _read(self) -> dict[str, Any]:
        """Return the next message; an event is kept too."""
        latest = time.monotonic() + TIMEOUT
        while b"\0" not in self._unread:
            left = latest - time.monotonic()
            assert select.select([self._in], [], [], max(0, left))[0], "Chromium is silent"
            data = os.read(self._in, 1 << 20)
            assert data, f"Chromium ended with status {self._process.wait()}"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
