"""Opens a page in the user's browser as soon as its server answers.

Run as a program of its own, with the page's address and the port: the process that asks becomes the server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress

PATIENCE_S = 60.0
"""How long a server may take to start."""


def has_screen() -> bool:
    """Return whether there is a person with a browser: a terminal, and a screen beside it."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return sys.stderr.isatty() and screen


def open_later(page: str, port: int) -> None:
    """Start the program that waits for the server and opens the page."""
    subprocess.Popen([sys.executable, "-m", __name__, page, str(port)])  # noqa: S603


def open_when_served(page: str, port: int, patience_s: float = PATIENCE_S) -> bool:
    """Open a page once something listens on a port of this machine; returns whether it was opened."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return webbrowser.open(page)
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    open_when_served(sys.argv[1], int(sys.argv[2]))
