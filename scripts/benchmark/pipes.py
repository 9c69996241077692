"""The worker's end of a pipe: a JSON line for each request, a JSON line for each reply.

Needs nothing but the standard library, as every environment imports it.
"""

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Method = Callable[..., Any]


class Channel:
    """Requests on stdin, replies on what was stdout; whatever libraries print goes to stderr."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """The next request's method and arguments; None when the other end is closed."""
        line = sys.stdin.readline()
        if not line:
            return None
        request = json.loads(line)
        return request["method"], request["arguments"]

    def reply(self, result: Any) -> None:
        self._send({"result": result})

    def fail(self) -> None:
        """Tell the other end of the exception that is being handled."""
        self._send({"error": traceback.format_exc()})

    def serve(self, methods: Mapping[str, Method]) -> None:
        """Answer until the other end closes the pipe."""
        while request := self.receive():
            self.answer(methods, *request)

    def answer(self, methods: Mapping[str, Method], name: str, arguments: dict[str, Any]) -> None:
        try:
            result = methods[name](**arguments)
        except Exception:
            self.fail()
        else:
            self.reply(result)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()


def peak_memory() -> int:
    """The most bytes this process has held in memory, that of processes below it not counted.

    VmHWM, as ru_maxrss begins with what the starting process held.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
