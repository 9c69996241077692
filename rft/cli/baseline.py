"""What `rft validate --samples` found, for a person."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rft.cli.text import decimal, duration, table

MARKS = {"blocker": "x", "change": "!", "note": "·"}
"""What stands before a finding."""

CANARY_NAMES = {
    "empty": "nothing at all",
    "punctuation": 'a lone ":"',
    "echo": "the prompt repeated",
    "reference": "the reference answer",
}


def baseline_lines(found: Mapping[str, Any], width: int) -> list[str]:
    """The report, section by section, with the verdict at the end."""
    sections = [
        _head(found),
        _rewards(found),
        _figures(found),
        _canaries(found),
        verdict_lines(found, width),
    ]
    return [line for section in sections for line in (*section, "")][:-1]


def verdict_lines(found: Mapping[str, Any], width: int) -> list[str]:
    """The verdict, and each finding as a paragraph."""
    lines = [f"verdict: {found['verdict']}"]
    for finding in found["findings"]:
        first = f"  {MARKS[finding['weight']]} "
        lines += textwrap.wrap(
            finding["text"], width, initial_indent=first, subsequent_indent=" " * len(first)
        )
    if not found["findings"]:
        lines.append("  nothing was found that stands in the way")
    return lines


def _head(found: Mapping[str, Any]) -> list[str]:
    num_completions = found["num_prompts"] * found["samples_per_prompt"]
    return [
        f"the untrained model on {found['num_prompts']} training prompts, "
        f"{found['samples_per_prompt']} completions each at temperature {found['temperature']:g}: "
        f"{num_completions} completions in {duration(found['seconds'])}"
    ]


def _rewards(found: Mapping[str, Any]) -> list[str]:
    """A row for the reward and one for each part."""
    rows = [("reward", found["reward"])]
    rows += [(f"  {key}", numbers) for key, numbers in found["parts"].items()]
    names = ("mean", "std", "within_group_std", "min", "max")
    header = ("", "mean", "std", "std within a group", "lowest", "highest")
    return table(header, [(name, *(decimal(row[n]) for n in names)) for name, row in rows])


def _figures(found: Mapping[str, Any]) -> list[str]:
    groups, completions = found["groups"], found["completions"]
    correlation = found["reward_length_correlation"]
    lowest = found["reward"]["min"]
    at_zero = "all at 0" if lowest is None or lowest >= 0 else "all at 0 or below"
    shares = {
        "rewards differ": groups["with_signal_fraction"],
        at_zero: groups["all_zero_fraction"],
        "all passing": groups["all_passing_fraction"],
        "all equal between": groups["all_equal_between_fraction"],
        "fewer than two graded": groups["skipped_fraction"],
    }
    figures = {
        "groups": "  ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        "a step": (
            f"{groups['with_signal_per_step']:.1f} of its {groups['batch_size']} groups of "
            f"{groups['group_size']} will have rewards that differ"
        ),
        "passing": "  ".join(f"pass@{k} {value:.1%}" for k, value in found["pass_at"].items())
        + f"  (a reward of {found['pass_threshold']:g} or more)",
        "completions": (
            f"{completions['tokens_mean']:.1f} tokens  cut off {completions['truncated_fraction']:.0%}"
            f"  different within a group {completions['distinct_fraction']:.0%}"
            f"  same as for another prompt {completions['repeated_fraction']:.0%}"
        ),
        "length": (
            f"correlation with the reward {decimal(correlation['overall'], 2)} over all, "
            f"{decimal(correlation['within_groups'], 2)} within groups"
        ),
        "grading": _grading(found["grading"]),
    }
    lines = [f"{name:<11}  {text}" for name, text in figures.items()]
    return lines + _errors(found["errors"])


def _grading(grading: Mapping[str, Any]) -> str:
    times = (_seconds(grading["seconds_median"]), _seconds(grading["seconds_p95"]))
    return (
        f"{times[0]} s a call (median), {times[1]} s (95 %), {grading['num_calls']} calls; "
        f"{grading['waited_fraction']:.0%} of the sampling time went by waiting for them"
    )


def _errors(errors: Mapping[str, Any]) -> list[str]:
    return [
        f"{'errors':<11}  {kind} of {who} in {numbers['count']} grades ({numbers['rate']:.1%})"
        for who, kinds in errors.items()
        for kind, numbers in kinds.items()
    ] or [f"{'errors':<11}  none"]


def _canaries(found: Mapping[str, Any]) -> list[str]:
    """What answers of known worth earn, with each part's say."""
    keys = list(found["parts"])
    rows: list[Sequence[str]] = []
    for kind, canary in found["canaries"].items():
        known = f"{canary['num_graded']}/{canary['num_rows']}" if canary["num_rows"] else "–"
        parts = [decimal(canary["parts"].get(key)) for key in keys]
        rows.append((CANARY_NAMES[kind], decimal(canary["reward_mean"]), *parts, known))
    errors = [
        f"{CANARY_NAMES[name]}: {kind} of {who} on {numbers['count']} of {canary['num_rows']} rows"
        for name, canary in found["canaries"].items()
        for who, kinds in canary["errors"].items()
        for kind, numbers in kinds.items()
    ]
    return [*table(("what these answers earn", "reward", *keys, "rows graded"), rows), *errors]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
