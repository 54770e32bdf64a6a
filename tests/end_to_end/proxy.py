"""A TCP proxy before a server on loopback, whose connections a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading

PIECE = 2**16


class Proxy:
    """Passes bytes on between its own port and another one."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._refuses = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self, how: str) -> None:
        """Let nothing through: "refuse" ends every connection at once, "stall" leaves bytes lying."""
        self._refuses = how == "refuse"
        self._passes.clear()
        if self._refuses:
            for each in list(self._open):
                _end(each)

    def mend(self) -> None:
        """Let everything through, and what was left lying."""
        self._refuses = False
        self._passes.set()

    def close(self) -> None:
        """Stop to listen."""
        self.cut("refuse")
        self._server.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._refuses:
            client.close()
            return
        with client, socket.create_connection(self._target) as server:
            both = {client, server}
            self._open |= both
            back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
            back.start()
            self._pass(client, server)
            back.join()
            self._open -= both

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                self._passes.wait()
                to.sendall(piece)
        _end(source)
        _end(to)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
