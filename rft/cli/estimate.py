"""What `rft validate --estimate` found, for a person."""

import textwrap
from collections.abc import Mapping
from typing import Any

from rft.cli.text import decimal, duration, table

PART_NAMES = {
    "prefill": "prompts (prefill)",
    "decode": "completions (decode)",
    "sampling": "sampling",
    "grading": "waiting for grades",
    "training": "training",
    "sync": "taking over the weights",
    "rest": "all else",
    "evaluation": "evaluation",
}


def estimate_lines(found: Mapping[str, Any], width: int) -> list[str]:
    """The job's time by part, its memory, and what to beware of."""
    total = found["total_seconds"]
    lines = [
        f"the whole job: about {duration(total)}: {found['total_steps']} steps of "
        f"{duration(found['seconds_per_step'])}, {found['num_evaluations']} evaluations of "
        f"{duration(found['seconds_per_evaluation'])}",
        "",
        *table(
            ("", "each", "in all", "share", "tokens/s"),
            [_row(name, part, total) for name, part in found["parts"].items()],
        ),
        "",
        f"memory: {_gib(found['peak_memory_bytes'])} at most in the measured steps; up to "
        f"{_gib(found['largest_step_bytes'])} in a step with the longest completions; "
        f"{_gib(found['available_memory_bytes'])} are there",
    ]
    for warning in found["warnings"]:
        lines += textwrap.wrap(warning, width, initial_indent="! ", subsequent_indent="  ")
    return lines


def _row(name: str, part: Mapping[str, Any], total: float) -> tuple[str, ...]:
    share = f"{part['total_seconds'] / max(total, 1e-9):.0%}"
    return (
        PART_NAMES[name],
        duration(part["seconds_each"]),
        duration(part["total_seconds"]),
        share,
        decimal(part["tokens_per_second"], 0),
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
