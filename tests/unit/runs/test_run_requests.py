"""What one terminal asks of a run in another."""

import json
from pathlib import Path

import pytest

from rft.errors import DiskError
from rft.runs.layout import RunFolder
from rft.runs.requests import Action, Request, ask, asked


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_what_is_asked_is_heard(tmp_path: Path, action: Action) -> None:
    folder = RunFolder(tmp_path)
    assert asked(folder) is None
    ask(folder, action, 'rft runs "größer" \ud800')
    request = asked(folder)
    assert request is not None and request.action == action
    assert request.reason == 'rft runs "größer" \ud800'
    assert [path.name for path in tmp_path.iterdir()] == ["request.json"]
    document = json.loads(folder.request.read_text())
    assert set(document) == {"action", "reason", "pid", "host", "created_at"}


def test_the_last_wish_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ask(folder, "pause", "first")
    ask(folder, "cancel", "second")
    assert asked(folder) == Request("cancel", "second")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"{}", b'{"action": "stop"}', b'{"action": ["pause"]}', b"null"],
)
def test_what_is_no_request_is_none(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.request.write_bytes(content)
    assert asked(folder) is None


def test_a_request_may_lack_a_reason(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.request.write_text('{"action": "pause"}')
    assert asked(folder) == Request("pause", "")


def test_a_folder_that_is_gone_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot write: No such file or directory"):
        ask(RunFolder(tmp_path / "gone"), "pause", "why")
