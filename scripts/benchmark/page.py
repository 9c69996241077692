"""The results page: README.md of a folder of results, from their JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

INTRODUCTION = """# What the bench measured

Written by `scripts/bench page` from the JSON beside it. rft and TRL as tuned ran in turn in one call, on the same
model, prompts and settings; every ratio says how many times better rft is. TRL in its settings: *tuned* is
micro-batches of 8 in float32 without checkpointing and dropout; *stock* is one micro-batch of 64 in float32 and
otherwise its defaults; *bfloat16* leaves its default precision as well: measured where the processor has units for it
(AMX, AVX512-BF16, ARM's BF16); elsewhere a step takes a quarter of an hour.
Speed is compared with the fastest of those measured, memory with the leanest; which were measured, the rows tell.

- `step`, `sampler`, `train`: learning rate 0, natural lengths, no group skipped. TRL computes groups without signal
  anyway; in rft their advantages become ±1e-6 in turn.
- `train`: the same recorded completions; advantages of both sides agree.
- `time-to-reward`: rft as it is, groups without signal skipped; seconds of steps, evaluations left out on both sides.
- TRL's rewards are computed by plain functions in its process, rft's by the job's sandboxed grader.
- `time-to-reward`, `curves`: TRL's *tuned* setting.
- *code*: the commit that was measured; *unknown* where none was noted.
- *stock* and *bfloat16* are measured by themselves, before the rounds: one step, or where that takes less than a
  minute two after one that does not count (where the code is unknown, one that was the first).
- The machines are shared, and their speed is not theirs alone. Figures of different calls are not to be compared.
- `scaling`, *group*: prompts of about 250 tokens that have little in common. What all prompts of a micro-batch begin
  with is computed once, so that over the jobs' own, of 47 tokens of which most are alike, the group's size is worth
  less than two rounds differ by.
- A side that waits sleeps. Peak memory is a process's own (VmHWM).
"""


def write_page(folder: Path) -> Path:
    """Gives the page's path."""
    results = load_results(folder)
    lines = [INTRODUCTION, *machine_lines(results), *ratio_lines(results)]
    for result in results:
        processor = result["machine"]["processor"]
        lines += ["", f"## `{result['mode']}`, {result['job']}, {processor}", "", *section(result)]
    page = folder / "README.md"
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page


def load_results(folder: Path) -> list[Result]:
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if "mode" in result]


def machine_lines(results: Sequence[Result]) -> Iterator[str]:
    machines = {json.dumps(told_machine(result["machine"])) for result in results}
    for machine in sorted(machines):
        yield "- " + ", ".join(f"{key}: {value}" for key, value in json.loads(machine).items())


def told_machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    libraries = ", ".join(f"{k} {v}" for k, v in machine["libraries"].items() if k in SHOWN)
    return {
        "processor": machine["processor"],
        "cores": machine["num_cores"],
        "threads": machine["num_threads"],
        "memory": f"{machine['memory_bytes'] / 1e9:.0f} GB",
        "platform": machine["platform"],
        "libraries": libraries,
    }


SHOWN = ("torch", "transformers", "peft")


def ratio_lines(results: Sequence[Result]) -> Iterator[str]:
    """One table of all ratios, which depend on the processor: TRL's matrix products are far from the best of
    some and near that of others."""
    names = list(dict.fromkeys(name for result in results for name in result["ratios"]))
    yield from ("", "## Times better than TRL", "")
    yield from header(
        ["mode", "job", "processor", "code", *(name.replace("_", " ") for name in names)]
    )
    for result in results:
        values = [shown(result["ratios"][name]) for name in names]
        if any(values):
            told = [result["mode"], result["job"], result["machine"]["processor"]]
            yield row([*told, result.get("code") or "unknown", *values])


def section(result: Result) -> Iterator[str]:
    """What one result says beyond its ratios."""
    if result.get("samples"):
        keys = [key for key in COLUMNS if any(key in m for m in result["medians"].values())]
        yield from header(["median", *(key.replace("_", " ") for key in keys), "samples"])
        for side, values in result["medians"].items():
            count = len(result["samples"][side])
            yield row([side, *(shown(values.get(key)) for key in keys), str(count)])
        yield ""
    for side, peak in result.get("peak_memory", {}).items():
        yield f"- peak memory of {side}: {peak / 1e9:.2f} GB"
    if limit := result.get("gemm_limit"):
        yield f"- {100 * limit['share']:.0f} % of the GEMM limit of {limit['tokens_per_second']:.1f} tokens/s"
    if result.get("times_vllm"):
        yield f"- {result['times_vllm']:.2f} times vLLM's tokens/s"
    yield from runs_table(result.get("runs", []))
    for axis, points in result.get("points", {}).items():
        yield from points_table(axis, points)
    for name, value in (result.get("verdict") or {}).items():
        yield f"- {name.replace('_', ' ')}: {shown(value) if isinstance(value, float) else value}"
    if result["mode"] == "curves" or result.get("points", {}).keys() - {"memory"}:
        yield from ("", f"![{result['mode']}]({result['mode']}-{result['job']}.png)")
    if not result.get("runs"):  # which may have been run at other times
        yield f"- took {result['seconds'] / 60:.1f} minutes"


COLUMNS = (
    "seconds",
    "sampling_seconds",
    "training_seconds",
    "tokens_per_second",
    "completion_tokens_mean",
    "reward_mean",
    "zero_signal_fraction",
)


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not runs:
        return
    yield from header(
        ["side", "seed", "target at step", "seconds", "steps", "median step", "zero-signal groups"]
    )
    for run in runs:
        reached = run["reached_step"]
        bound = f"> {run['elapsed_seconds']:.0f}"
        yield row(
            [
                run["side"],
                str(run["seed"]),
                "not reached" if reached is None else str(reached),
                bound if reached is None else f"{run['reached_seconds']:.0f}",
                str(run["num_steps"]),
                f"{run['median_step_seconds']:.1f} s",
                f"{100 * run['zero_signal_fraction']:.0f} %",
            ]
        )
    yield ""


def points_table(axis: str, points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from header(
        [
            *(axis, "sampling ms/token", "training ms/token", "s/completion", "prompt"),
            *("peak memory", "code"),
        ]
    )
    for point in points:
        costs = [point["sampling_per_token"], point["training_per_token"]]
        yield row(
            [
                str(point["value"]),
                *("" if cost is None else f"{1000 * cost:.2f}" for cost in costs),
                f"{point['seconds_per_completion']:.3f}",
                str(point["prompt_tokens"]),
                f"{point['peak_memory'] / 1e9:.2f} GB",
                point.get("code") or "unknown",
            ]
        )
    yield ""


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def header(names: Sequence[str]) -> list[str]:
    return [row(names), row(["---"] * len(names))]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
