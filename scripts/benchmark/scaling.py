"""`scaling`: what a token and a completion cost rft as sizes grow. Every point is a process of its own.

No token ends a completion here, so that lengths are what a point says; the learning rate is 0 and all
groups are computed.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.benchmark.plotting import plot
from scripts.benchmark.workers import ROOT, Worker, codes_of, commit, rft_worker, say

GROUP = "engine.rollout.group_size"
COMPLETION = "engine.rollout.max_completion_tokens"
SLOTS = "engine.rollout.slots"
BATCH = "method.reinforcement.hyperparameters.batch_size"
FILLER = "one two three four five six seven eight nine ten "
FILLER_TOKENS = 10
PLAIN_PROMPT_TOKENS = 47
MEMORY_LIMIT = 4e9
COMPARED = ("group", "rows")
"""Axes whose points differ by less than the machine's speed from one minute to the next: all are opened at once
and measured in turn."""


@dataclass(frozen=True)
class Point:
    """One size."""

    axis: str
    value: int
    overrides: Mapping[str, int]
    samples_only: bool = False
    """Sample, and do not train."""
    repeats: int = 2
    """Beside a first round, which counts where it is the only one."""
    prompt_tokens: int | None = None
    """Pad prompts to about so many tokens."""


def points_of(axis: str) -> list[Point]:
    """The sizes of an axis; `group` keeps the completions of a step at 64, each as long as the job lets it be, of
    prompts that have little in common, and `rows` at 128."""
    if axis == "group":
        return [
            Point(axis, size, {GROUP: size, BATCH: 64 // size}, repeats=4, prompt_tokens=250)
            for size in (4, 8, 16, 32)
        ]
    if axis == "completion":
        return [
            Point(axis, length, {GROUP: 8, BATCH: 2, COMPLETION: length})
            for length in (16, 64, 128, 256, 512)
        ]
    if axis == "prompt":
        sizes = {GROUP: 8, BATCH: 2, COMPLETION: 64}
        return [Point(axis, n, sizes, prompt_tokens=n) for n in (50, 250, 500, 1000)]
    if axis == "rows":
        return [
            Point(axis, rows, {GROUP: 8, BATCH: 16, COMPLETION: 32, SLOTS: rows}, True, 3)
            for rows in (8, 16, 32, 64, 128)
        ]
    return [Point("memory", 512, {GROUP: 16, BATCH: 4, COMPLETION: 512}, repeats=0)]


def measure_scaling(
    job: str, num_threads: int, axes: Sequence[str], folder: Path
) -> dict[str, Any]:
    """All points of the axes; those of other axes are taken from an earlier result in the folder."""
    points = earlier_points(folder / f"scaling-{job}.json")
    for axis in axes:
        sizes = points_of(axis)
        together = [sizes] if axis in COMPARED else [[size] for size in sizes]
        points[axis] = [told for some in together for told in measure(job, num_threads, some)]
    if any(axis != "memory" for axis in points):
        plot("scaling", {"points": points}, folder / f"scaling-{job}.png")
    code = codes_of([point for axis in points.values() for point in axis])
    return {"code": code, "points": points, "verdict": verdict(points)}


def earlier_points(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.exists():
        return {}
    points: dict[str, list[dict[str, Any]]] = json.loads(path.read_text("utf-8"))["points"]
    return points


def measure(job: str, num_threads: int, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Medians of each point's repeats, in turn with the other points, after a round that is not counted."""
    code = commit()
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_at(job, num_threads, point)) for point in points]
        samples: list[list[dict[str, Any]]] = [[] for _ in points]
        for number in range(1, 2 + max(point.repeats for point in points)):
            for point, worker, taken in zip(points, opened, samples, strict=True):
                if number <= 1 + point.repeats:
                    method = "sample" if point.samples_only else "step"
                    taken.append(worker.ask(method, step=number))
        found = []
        for point, worker, taken in zip(points, opened, samples, strict=True):
            prompt = worker.ask("settings", num_steps=1)["train"][0]
            counted = taken[1:] or taken
            told = {
                "value": point.value,
                "code": code,
                **costs(counted),
                "rounds": [
                    sample["seconds"] / sample["num_completions"]
                    for sample in counted
                    if not point.samples_only
                ],
                "prompt_tokens": len(prompt["token_ids"]),
                "peak_memory": worker.ask("peak_memory"),
            }
            say(f"  {point.axis}: {json.dumps(told)}")
            found.append(told)
        return found


@contextmanager
def opened_at(job: str, num_threads: int, point: Point) -> Iterator[Worker]:
    """rft with the job at this size."""
    config = ROOT / "configs" / job
    with TemporaryDirectory() as scratch, rft_worker(num_threads) as worker:
        overrides = [f"{key}={value}" for key, value in point.overrides.items()]
        if point.prompt_tokens:
            path = padded_rows(config / "train.jsonl", Path(scratch), point.prompt_tokens)
            overrides.append(f"training_file={path}")
        worker.ask(
            "start",
            job=str(config / "job.yaml"),
            overrides=overrides,
            learns=False,
            all_groups=True,
            full_length=True,
        )
        yield worker


def costs(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over samples of seconds per completion token and per completion."""

    def median(key: str, per: str) -> float | None:
        values = [sample[key] / sample[per] for sample in samples if key in sample]
        return statistics.median(values) if values else None

    sampling = "sampling_seconds" if "sampling_seconds" in samples[0] else "seconds"
    return {
        "sampling_per_token": median(sampling, "num_tokens"),
        "training_per_token": median("training_seconds", "num_tokens"),
        "seconds_per_completion": median("seconds", "num_completions"),
        "completion_tokens": samples[0]["completion_tokens_mean"],
    }


def padded_rows(source: Path, folder: Path, num_tokens: int) -> Path:
    """The same rows with prompts of about so many tokens, most of them no other prompt's."""
    filler = FILLER * max(0, round((num_tokens - PLAIN_PROMPT_TOKENS) / FILLER_TOKENS))
    lines = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        # the number comes first: what prompts begin with alike would be computed once for all
        content = f"{number} {filler}{row['messages'][-1]['content']}" if filler else None
        row["messages"][-1]["content"] = content or row["messages"][-1]["content"]
        lines.append(json.dumps(row))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def verdict(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bool]:
    """What the points show, of those that were measured."""
    found = {}
    if "rows" in points:
        cost = {point["value"]: point["sampling_per_token"] for point in points["rows"]}
        found["128_rows_cost_no_more_per_token_than_16"] = cost[128] <= cost[16]
    if "group" in points:
        group_costs = [point["seconds_per_completion"] for point in points["group"]]
        found["cost_per_completion_falls_as_the_group_grows"] = all(
            later < earlier for earlier, later in pairwise(group_costs)
        )
    if "memory" in points:
        found["512_tokens_of_a_group_of_16_within_4_GB"] = all(
            point["peak_memory"] <= MEMORY_LIMIT for point in points["memory"]
        )
    return found
