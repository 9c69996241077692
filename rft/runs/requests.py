"""What somebody asks the process of a run to do, as a file in the run's folder that it looks for."""

import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from rft.runs import disk
from rft.runs.documents import json_bytes, read_document
from rft.runs.layout import RunFolder

Action = Literal["pause", "cancel"]


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody's wish."""

    action: Action
    reason: str
    """Who asks, for the run's events."""


def ask(folder: RunFolder, action: Action, reason: str) -> None:
    """Ask a run's processes; raises DiskError when the folder may not be written."""
    request = asdict(Request(action, reason))
    asked_by = {"pid": os.getpid(), "host": socket.gethostname(), "created_at": time.time()}
    disk.replace(folder.request, json_bytes({**request, **asked_by}))


def asked(folder: RunFolder) -> Request | None:
    """What is asked of the run, if anything."""
    document = read_document(folder.request)
    for action in get_args(Action):
        if document.get("action") == action:
            return Request(action, str(document.get("reason", "")))
    return None
