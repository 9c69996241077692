"""What a command answers, and the two streams it may be written to."""

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from rft.cli.text import clean
from rft.runs.documents import finite

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]

PLAIN = str.maketrans({"…": "...", "–": "-", "±": "+-", "→": "->", "│": "|", "·": "-", "×": "x"})
"""For streams that know no more than ASCII."""

STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a command, for programs and for people."""

    document: Any
    """A value for JSON."""
    lines: Sequence[str]
    """The same for a person."""
    as_json: bool
    exit_code: int = 0


class Screen:
    """A stream for people: safe characters only, silent once its reader has gone."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        is_terminal = stream is not None and stream.isatty()
        self._is_colored = (
            is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self.is_unicode = encoding.replace("-", "") in ("utf8", "utf16", "utf8sig")
        self.width = min(shutil.get_terminal_size((100, 24)).columns, 120) if is_terminal else 100

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line, whole in one of STYLES where the terminal has colors."""
        safe = clean(text)
        if style and self._is_colored:
            safe = f"\x1b[{STYLES[style]}m{safe}\x1b[0m"
        self.raw(safe + "\n")

    def raw(self, text: str) -> None:
        """Write text as it is; what the stream cannot encode is replaced."""
        if self._stream is None:
            return
        if not self.is_unicode:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            close_quietly(self._stream)
            self._stream = None


def write_reply(reply: Reply, stream: TextIO | None) -> None:
    """Write an answer to stdout, as JSON or for a person."""
    screen = Screen(stream)
    if reply.as_json:
        screen.raw(json_text(reply.document) + "\n")
        return
    for line in reply.lines:
        screen.line(line)


def json_text(document: Any) -> str:
    """The document as JSON in ASCII; a non-finite number is null."""
    return json.dumps(finite(document), allow_nan=False, indent=2, default=str)


def close_quietly(stream: TextIO) -> None:
    """Point a stream whose reader has gone at nothing, so that no later flush complains."""
    try:
        descriptor = stream.fileno()
    except (OSError, io.UnsupportedOperation):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def stdout_screen(as_json: bool) -> Screen:
    """Where a command shows its progress: stdout, or stderr when stdout is for the document."""
    return Screen(sys.stderr if as_json else sys.stdout)
