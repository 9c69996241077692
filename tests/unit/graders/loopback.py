"""A small HTTP server on this machine whose every byte a test decides."""

import os
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it arrived, and the connection to answer it on."""

    connection: socket.socket
    connection_number: int
    line: str
    headers: dict[str, str]
    """By lower-case name; values of a repeated one are joined."""
    body: bytes
    time: float = field(default_factory=time.monotonic)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def reset(self) -> None:
        """End the connection with RST."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())


Answer = Callable[[Request], object]


class LoopbackServer(socketserver.ThreadingTCPServer):
    """Answers each request by a function; returns from it end nothing, an exception the connection."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        answer: Answer,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ):
        self.answer = answer
        self.requests: list[Request] = []
        self.num_connections = 0
        self.tls = tls
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/grade"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence: a client that goes away is what many tests are about."""


class Handler(socketserver.StreamRequestHandler):
    """Reads request after request of a connection."""

    server: LoopbackServer
    disable_nagle_algorithm = True

    def setup(self) -> None:
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        self.server.num_connections += 1
        number = self.server.num_connections
        while line := self.rfile.readline():
            headers: dict[str, str] = {}
            while (header := self.rfile.readline().strip()) != b"":
                name, _, value = header.decode("latin-1").partition(":")
                name, value = name.lower(), value.strip()
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            body = self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(self.request, number, line.decode().strip(), headers, body)
            self.server.requests.append(request)
            self.server.answer(request)


@contextmanager
def serving(answer: Answer, **options: Any) -> Iterator[LoopbackServer]:
    """A server at work in threads until the block ends."""
    with LoopbackServer(answer, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def reply(body: bytes = b'{"score": 0.75}', status: str = "200 OK", *headers: str) -> bytes:
    """The bytes of a whole reply."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def always(data: bytes) -> Answer:
    """The same reply to every request."""
    return lambda request: request.send(data)


def in_turn(*answers: Answer | bytes) -> Answer:
    """One answer after the other; the last one stays."""
    waiting = list(answers)
    lock = threading.Lock()

    def answer(request: Request) -> None:
        with lock:
            current = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(current, bytes):
            request.send(current)
        else:
            current(request)

    return answer
