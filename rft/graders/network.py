"""Connections to checked addresses that end by a deadline, beneath httpcore2's HTTP.

Trap: what httpcore2 calls `timeout` is handed through from its caller unread. Here it is an instant
of time.monotonic(), not a span, so that a server that drips a byte a second gains no time.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpcore2

from rft.graders.addresses import SocketAddress, canonical_host, checked_addresses

KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""Seconds and counts after which a peer that has vanished is noticed, where the system has them."""


class UntrustedCertificate(httpcore2.ConnectError):
    """The server does not prove to be the one that was called."""


class CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to public addresses, and to those of the hosts that are listed."""

    def __init__(self, private_hosts: Iterable[str]):
        self._private_hosts = frozenset(canonical_host(host) for host in private_hosts)
        self._sockets: set[socket.socket] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to the first address that answers; raises AddressRefused, httpcore2's errors."""
        deadline = time.monotonic() if timeout is None else timeout
        with named(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            addresses = checked_addresses(
                host, port, self._private_hosts, deadline, lambda: self._is_closed
            )
            return DeadlineStream(self._connect(addresses, deadline), self)

    def _connect(self, addresses: list[SocketAddress], deadline: float) -> socket.socket:
        """Each address gets an equal share of the time that is left."""
        failure = OSError("the host has no address")
        for index, target in enumerate(addresses):
            try:
                return self._connect_to(target, seconds_to(deadline) / (len(addresses) - index))
            except OSError as error:
                failure = error
        raise failure

    def _connect_to(self, target: SocketAddress, seconds: float) -> socket.socket:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        try:
            self.hold(sock)
            sock.settimeout(seconds)
            sock.connect(target.address)
            set_options(sock)
        except BaseException:
            self.drop(sock)
            raise
        return sock

    def hold(self, sock: socket.socket) -> None:
        """Let `close` end this socket; raises OSError once closed."""
        with self._lock:
            if self._is_closed:
                raise OSError("closed")
            self._sockets.add(sock)

    def drop(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def close(self) -> None:
        """End what is under way in other threads, and let nothing begin.

        Sockets are shut down, not closed: a number that another thread still waits on could be
        given to another file.
        """
        with self._lock:
            self._is_closed = True
            for sock in self._sockets:
                with suppress(OSError):
                    # SSLSocket.shutdown would take the TLS state from under a thread that reads
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class DeadlineStream(httpcore2.NetworkStream):
    """A connection whose reads and writes all end by the call's deadline."""

    def __init__(self, sock: socket.socket, network: CheckedNetwork):
        self._sock = sock
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with named(httpcore2.ReadTimeout, httpcore2.ReadError):
            self._sock.settimeout(seconds_to(timeout))
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        with named(httpcore2.WriteTimeout, httpcore2.WriteError):
            while view:
                self._sock.settimeout(seconds_to(timeout))
                view = view[self._sock.send(view) :]

    def close(self) -> None:
        self._network.drop(self._sock)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """The same connection with TLS, its certificate checked against the host's name."""
        with named(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            try:
                secure = ssl_context.wrap_socket(
                    self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
                )
            finally:
                self.close()  # from here on the connection belongs to `secure`
            try:
                self._network.hold(secure)  # before the handshake, so that `close` can end it
                secure.settimeout(seconds_to(timeout))
                secure.do_handshake()
            except BaseException:
                self._network.drop(secure)
                raise
        return DeadlineStream(secure, self._network)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore2 asks: the TLS layer, and whether an idle connection was ended."""
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        if info == "is_readable":
            return is_readable(self._sock)
        return None


@contextmanager
def named(
    timeout: Callable[[str], Exception], failure: Callable[[str], Exception]
) -> Iterator[None]:
    """The system's errors under the names that httpcore2 knows."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except ssl.SSLCertVerificationError as error:
        raise UntrustedCertificate(error.verify_message.rstrip(".")) from error
    except OSError as error:
        raise failure(error.strerror or str(error)) from error


def seconds_to(deadline: float | None) -> float:
    """The time left, always positive; raises TimeoutError when there is none."""
    left = 0.0 if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def set_options(sock: socket.socket) -> None:
    """Small writes go out at once, and a peer that vanished is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def is_readable(sock: socket.socket) -> bool:
    """Whether bytes or the end wait to be read; a closed socket has its end."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
