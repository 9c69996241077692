"""Runs brought to a status the way a job brings them there."""

from typing import Any

from rft.runs.writer import RunWriter, Status

ON_THE_WAY: dict[Status, tuple[Status, ...]] = {
    "validating_files": (),
    "queued": ("validating_files",),
    "running": ("validating_files", "queued"),
    "pausing": ("validating_files", "queued", "running"),
    "paused": ("validating_files", "queued", "running", "pausing"),
    "succeeded": ("validating_files", "queued", "running"),
    "failed": ("validating_files", "queued", "running"),
    "cancelled": ("validating_files", "queued", "running"),
}
"""What comes before each status of a run that nothing interrupts."""


def bring_to(writer: RunWriter, status: Status, **details: Any) -> None:
    """Take a run from its beginning to a status, without a word before the last one."""
    for earlier in ON_THE_WAY[status]:
        writer.status(earlier)
    writer.status(status, **details)
