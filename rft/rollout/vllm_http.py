"""JSON over HTTP to a vLLM server: retried while it is busy, ended by a deadline or by `close`.

The connections are those of the endpoint grader (`graders/network.py`): deadlines that a dripping
server cannot stretch, and a `close` that ends what other threads wait for. Its client is not used,
as it paces its calls and reads no more than a megabyte.
"""

import json
import os
import threading
import time
from typing import Any

import httpcore2

from rft.errors import GraderError, JobError, MachineError
from rft.graders.http import CONNECT_SECONDS, IDLE_SECONDS, Url, parse_url, trusted_certificates
from rft.graders.network import CheckedNetwork
from rft.rollout.vllm_replica import SETTING

KEY_VARIABLE = "VLLM_API_KEY"
"""Holds the key of a server that was started with one; vLLM's own name for it."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
BACKOFF_SECONDS = 0.5
MAX_RETRIES = 4
MAX_EXCERPT_CHARACTERS = 600
RESTART = "start it again, and go on with rft train --resume"


class Refused(Exception):
    """The server understood the request and turned it down."""

    def __init__(self, status: int, message: str):
        super().__init__(f"status {status}: {message}")
        self.status = status
        self.message = message


class JsonClient:
    """Requests to one server; safe to use from several threads."""

    def __init__(
        self,
        url: str,
        seconds: float,
        backoff_seconds: float = BACKOFF_SECONDS,
        max_retries: int = MAX_RETRIES,
    ):
        """`seconds` is the limit of one request; raises JobError for what is no url."""
        try:
            self._url: Url = parse_url(url.rstrip("/"), SETTING)
        except GraderError as error:
            raise JobError(error.problems) from None
        self.place = f"the vLLM server at {url}"
        self._seconds = seconds
        self._backoff_seconds = backoff_seconds
        self._max_retries = max_retries
        self._closed = threading.Event()
        self._network = CheckedNetwork([self._url.host])
        self._pool = httpcore2.ConnectionPool(
            ssl_context=trusted_certificates() if self._url.scheme == "https" else None,
            max_connections=None,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=self._network,
        )

    def get(self, path: str) -> Any:
        """The JSON of a reply; raises Refused, MachineError."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """The same; a reply that is no JSON gives its text."""
        return self._ask("POST", path, json.dumps(body).encode())

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """End requests in flight and begin no other."""
        self._closed.set()
        self._network.close()

    def fault(self, what: str, remedy: str) -> MachineError:
        """An error that names the server."""
        return MachineError(f"{self.place} {what}", where=SETTING, remedy=remedy)

    def _ask(self, method: str, path: str, content: bytes | None) -> Any:
        """A request is sent again when the connection fails or the server is busy: a completion is
        a function of its seed, and an adapter's name is used once, so twice does no harm."""
        failure = ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                self._closed.wait(self._backoff_seconds * 2.0 ** (attempt - 1))
            if self._closed.is_set():
                raise self.fault("is no longer asked", "find the first error")
            try:
                status, text = self._send(method, path, content)
            except httpcore2.TimeoutException:
                raise self.fault(
                    f"did not answer {path} within {self._seconds:g} s",
                    "see its log, or raise engine.rollout.vllm.request_seconds",
                ) from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                failure = f"cannot be reached: {error}"
                continue
            if status in BUSY:
                failure = f"answers {path} with status {status}: {_message(text)}"
                continue
            if status >= 300:
                raise Refused(status, _message(text))
            return _parsed(text)
        raise self.fault(f"{failure} (asked {self._max_retries + 1} times)", RESTART)

    def _send(self, method: str, path: str, content: bytes | None) -> tuple[int, str]:
        url = httpcore2.URL(
            scheme=self._url.scheme,
            host=self._url.host,
            port=self._url.port,
            target=self._url.target.rstrip("/") + path,
        )
        headers = [("Host", self._url.host_header), ("Content-Type", "application/json")]
        if key := os.environ.get(KEY_VARIABLE):
            headers.append(("Authorization", f"Bearer {key}"))
        # instants, not spans: see graders/network.py
        now = time.monotonic()
        deadline = now + self._seconds
        instants = {
            "connect": min(deadline, now + CONNECT_SECONDS),
            "write": deadline,
            "read": deadline,
        }
        response = self._pool.request(
            method, url, headers=headers, content=content, extensions={"timeout": instants}
        )
        return response.status, response.content.decode("utf-8", errors="replace")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _message(text: str) -> str:
    """What an error reply says, in vLLM's form or any other."""
    found = _parsed(text)
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:MAX_EXCERPT_CHARACTERS]
