"""A real S3 server on loopback, whose answers can be made to fail, and whose requests are counted.

Requests are served one at a time, as those of one object are by S3 itself. It runs in a process of its own:

    python -m tests.s3    prints its port
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "store"
CONTROL = "/_control"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class Server:
    """A running server: where it is, what it was asked, and what it is to get wrong."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }
        self._ask("PUT", f"/{BUCKET}")

    def new_address(self) -> str:
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"

    def fail(self, how: str, method: str, path: str, times: int = 1, seconds: float = 0.0) -> None:
        """Let the next requests whose path holds `path` fail.

        "throttle": 503, nothing is done; "lost": it is done, and 500 is the answer; "cut": the connection
        ends in the middle of the body, nothing is done; "hang": nothing happens for so many seconds.
        """
        fault = {"how": how, "method": method, "path": path, "times": times, "seconds": seconds}
        self._ask("POST", CONTROL, json.dumps(fault).encode())

    def requests(self) -> list[str]:
        """Return the requests since the last call, as "GET /bucket/name?query"."""
        found: list[str] = json.loads(self._ask("GET", CONTROL))
        return found

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server while the block runs."""
    command = [sys.executable, "-m", "tests.s3"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Server(int(process.stdout.readline()))
        finally:
            process.kill()


class Application:
    """moto's S3 behind a lock, with faults before or after it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.lock = threading.Lock()
        self.faults: list[dict[str, Any]] = []
        self.seen: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == CONTROL:
            return self._control(method, environ, start_response)
        self.seen.append(f"{method} {path}?{environ.get('QUERY_STRING', '')}")
        fault = self._fault(method, path)
        if fault == "throttle":
            self._read(environ)
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        if fault == "cut":
            if length := int(environ.get("CONTENT_LENGTH") or 0):
                environ["wsgi.input"].read(length // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        with self.lock:
            content = list(self.inner(environ, start_response if fault != "lost" else _nobody))
        if fault == "lost":
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code></Error>"]
        return content

    def _control(self, method: str, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        if method == "POST":
            self.faults.append(json.loads(self._read(environ)))
            return [b"{}"]
        seen, self.seen = self.seen, []
        return [json.dumps(seen).encode()]

    def _fault(self, method: str, path: str) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault["times"] and fault["method"] == method and fault["path"] in path:
                    fault["times"] -= 1
                    break
            else:
                return None
        if fault["how"] == "hang":
            time.sleep(fault["seconds"])
            return None
        found: str = fault["how"]
        return found

    def _read(self, environ: dict[str, Any]) -> bytes:
        content: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return content


def _nobody(status: str, headers: Any, error: Any = None) -> None:
    """Take an answer that the client is not to see."""


def serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            """Print nothing."""

    application = Application(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
