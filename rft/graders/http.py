"""Calls of a server from many threads: paced, retried, bounded in time and size, ended by `close`.

No redirect is followed, no proxy of the environment is used, and certificates are checked against
the system's (or those of SSL_CERT_FILE).
"""

import math
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import httpcore2

from rft.errors import GraderError, MachineError
from rft.graders.addresses import canonical_host, literal_address
from rft.graders.network import CheckedNetwork, UntrustedCertificate

MAX_REPLY_BYTES = 1_000_000
MAX_EXCERPT_BYTES = 4_000
"""Read of a reply whose status is an error."""
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
"""An idle connection is not used again after this."""
MAX_RETRIES = 3
BACKOFF_SECONDS = 0.5
MAX_EXCERPT_CHARACTERS = 500
MAX_URL_CHARACTERS = 8_000

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


class NoReply(Exception):
    """No connection, none in time, broken off, or only replies that ask to come back later."""

    def __init__(self, details: str, *, may_pass: bool = True):
        super().__init__(details)
        self.may_pass = may_pass
        """Whether another attempt may fare better."""


class ReplyTooLarge(Exception):
    """A reply was cut off at `MAX_REPLY_BYTES`."""


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https address, taken apart once for checks and connections alike."""

    scheme: str
    host: str
    """As `canonical_host` gives it: without brackets or a final dot."""
    port: int
    target: str
    """Path and query."""

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; of a repeated header the last."""
    body: bytes
    """Whole where the status is a success, else its beginning."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def asks_to_retry(self) -> bool:
        return self.status in (408, 425, 429) or self.status >= 500


class HttpClient:
    """Posts to one url; safe to call from several threads, which share its pace and connections."""

    def __init__(
        self,
        url: Url,
        *,
        requests_per_second: float,
        private_hosts: tuple[str, ...] = (),
        total_seconds: float,
        backoff_seconds: float = BACKOFF_SECONDS,
    ):
        self._url = url
        self._total_seconds = total_seconds
        self._backoff_seconds = backoff_seconds
        self._closed = threading.Event()
        self._pace = Pace(requests_per_second)
        self._network = CheckedNetwork(private_hosts)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=trusted_certificates() if url.scheme == "https" else None,
            max_connections=None,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=self._network,
        )

    def post(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The first reply that does not ask to come back later; up to three retries.

        All of it takes at most `total_seconds`, counted from the first request. Raises
        AddressRefused, ReplyTooLarge, NoReply.
        """
        self._pace.wait(self._closed, until=math.inf)
        deadline = time.monotonic() + self._total_seconds
        num_requests = 0
        while True:
            num_requests += 1
            self._refuse_when_closed()
            try:
                reply = self._send(body, headers, deadline)
            except NoReply as error:
                failure, may_pass, pause = str(error), error.may_pass, 0.0
            else:
                if not reply.asks_to_retry:
                    return reply
                failure, may_pass, pause = status_words(reply), True, retry_after(reply)
            self._refuse_when_closed()
            told = f"{failure} (asked {'once' if num_requests == 1 else f'{num_requests} times'})"
            has_time = time.monotonic() < deadline
            if num_requests > MAX_RETRIES or not may_pass or not has_time:
                raise NoReply(told)
            pause = max(pause, self._backoff(num_requests))
            if not self._rest(pause, deadline):
                told += f"; the next request, in {pause:.0f} s, would pass the limit of "
                raise NoReply(f"{told}{self._total_seconds:g} s")

    def close(self) -> None:
        """End calls in flight; their threads find out at once."""
        self._closed.set()
        self._network.close()
        for connection in self._pool.connections:
            if connection.is_idle():
                connection.close()

    def _refuse_when_closed(self) -> None:
        if self._closed.is_set():
            raise NoReply("the grader was closed during the call")

    def _send(self, body: bytes, headers: Mapping[str, str], deadline: float) -> Reply:
        """One request and its reply."""
        url = httpcore2.URL(
            scheme=self._url.scheme,
            host=self._url.host,
            port=self._url.port,
            target=self._url.target,
        )
        # instants, not spans: see network.py
        connect_by = min(deadline, time.monotonic() + CONNECT_SECONDS)
        instants = {"connect": connect_by, "write": deadline, "read": deadline}
        try:
            with self._pool.stream(
                "POST",
                url,
                headers=[("Host", self._url.host_header), *headers.items()],
                content=body,
                extensions={"timeout": instants},
            ) as response:
                return read_reply(response)
        except httpcore2.ConnectTimeout:
            raise NoReply(f"no connection to {self._url.host_header} in time") from None
        except httpcore2.TimeoutException:
            raise NoReply(f"no reply within {self._total_seconds:g} s") from None
        except UntrustedCertificate as error:
            told = f"the certificate of {self._url.host} is not trusted: {error}"
            raise NoReply(f"{told}; SSL_CERT_FILE may name who is", may_pass=False) from None
        except httpcore2.ConnectError as error:
            raise NoReply(f"no connection to {self._url.host_header}: {error}") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise NoReply(f"the connection broke off: {error}") from None

    def _backoff(self, num_requests: int) -> float:
        """Seconds before the next request: doubling, and scattered so that threads drift apart."""
        return self._backoff_seconds * 2.0 ** (num_requests - 1) * random.uniform(0.5, 1.5)

    def _rest(self, seconds: float, deadline: float) -> bool:
        """Wait before the next request; False when it would come after the deadline."""
        if time.monotonic() + seconds >= deadline:
            return False
        self._closed.wait(seconds)
        return self._pace.wait(self._closed, until=deadline)


class Pace:
    """Spaces the requests of all threads evenly."""

    def __init__(self, requests_per_second: float):
        self._seconds_between = 1 / requests_per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, closed: threading.Event, *, until: float) -> bool:
        """Wait for the next free instant; False, and none is taken, when it lies past `until`."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            if start >= until:
                return False
            self._next = start + self._seconds_between
        closed.wait(start - now)
        return True


def parse_url(text: str, where: str) -> Url:
    """An http or https url; raises GraderError with what is wrong with it."""
    shown = repr(text if len(text) <= 100 else text[:100] + "…")

    def fault(what: str, remedy: str) -> GraderError:
        return GraderError(what, where=where, remedy=remedy)

    if len(text) > MAX_URL_CHARACTERS:
        what = f"the url has {len(text)} characters"
        raise fault(what, f"at most {MAX_URL_CHARACTERS} are sent")
    odd = next((character for character in text if not "!" <= character <= "~"), None)
    if odd is not None or "\\" in text:
        remedy = "write it percent-encoded, and a host in its xn-- form"
        raise fault(f"{shown} holds {odd or chr(92)!r}, which no url may", remedy)
    if "{" in text or "}" in text:
        remedy = "only the values of headers are filled in from the environment"
        raise fault(f"{shown} holds a brace", remedy)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise fault(f"{shown} is no url: {error}", "write https://host/path") from None
    if "@" in parts.netloc:
        raise fault("the url holds a user name or a password", "send the key in `headers`")
    host = canonical_host(parts.hostname or "")
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise fault(f"{shown} is no http or https url with a host", "write https://host/path")
    if "#" in text:
        raise fault(f"{shown} has a fragment (#…)", "remove it: servers never see it")
    is_host = bool(HOST_NAME.fullmatch(host)) or literal_address(host) is not None
    if not is_host or "%" in host or port == 0:
        raise fault(f"{shown} names no host and port that can be called", "write https://host/path")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], target)


def trusted_certificates() -> ssl.SSLContext:
    """What certificates are checked against; raises MachineError when it cannot be read."""
    try:
        return httpcore2.default_ssl_context()
    except OSError as error:
        variable = next((name for name in CERTIFICATE_VARIABLES if os.environ.get(name)), "")
        source = f"{variable}={os.environ[variable]}" if variable else "this machine"
        raise MachineError(
            f"the certificates of {source} cannot be read: {error.strerror or error}",
            where="https",
            remedy="set SSL_CERT_FILE to a PEM file of the authorities you trust, or unset it",
        ) from None


def read_reply(response: httpcore2.Response) -> Reply:
    """The reply with its body up to a limit; raises ReplyTooLarge."""
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
    }
    is_success = 200 <= response.status < 300
    limit = MAX_REPLY_BYTES if is_success else MAX_EXCERPT_BYTES
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        if len(body) > limit:
            if is_success:
                raise ReplyTooLarge(f"the reply has more than {limit} bytes")
            break
    return Reply(response.status, headers, bytes(body[:limit]))


def retry_after(reply: Reply) -> float:
    """The seconds a server asks to wait, given as seconds or as a date; 0 where it does not."""
    text = reply.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def status_words(reply: Reply) -> str:
    """The status and the beginning of the body."""
    known = {status.value: f" {status.phrase}" for status in HTTPStatus}
    text = excerpt(reply.body)
    return f"HTTP {reply.status}{known.get(reply.status, '')}" + (f": {text}" if text else "")


def excerpt(body: bytes) -> str:
    """The beginning of a body on one line, safe to print."""
    text = body[:MAX_EXCERPT_BYTES].decode("utf-8", "replace")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_EXCERPT_CHARACTERS]
