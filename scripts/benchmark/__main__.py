"""The command line of scripts/bench; it prints one result on stdout and progress on stderr."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rft.errors import RftError
from rft.runs.environment import environment
from scripts.benchmark.comparison import Plan, compare_samplers, compare_steps, compare_training
from scripts.benchmark.learning import Race, draw_curves, race
from scripts.benchmark.page import write_page
from scripts.benchmark.ratios import RATIOS, all_ratios
from scripts.benchmark.scaling import measure_scaling
from scripts.benchmark.workers import ROOT, WorkerError, commit

COMPARISONS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "step": compare_steps,
    "sampler": compare_samplers,
    "train": compare_training,
}
MODES = (*COMPARISONS, "time-to-reward", "curves", "scaling", "page")


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.mode == "page":
        print(write_page(options.out))
        return 0
    began, code = time.monotonic(), commit()
    try:
        found = measure(options)
    except (RftError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    result = complete({"code": code, **found}, options, time.monotonic() - began)
    if options.out:
        keep(result, options.out / f"{options.mode}-{options.job}.json")
    print(json.dumps(result) if options.json else table(result))
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="rft and TRL (and vLLM) on the same job, in turn, in one call.",
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument(
        "--job", choices=["arithmetic", "capitals"], help="default: arithmetic; capitals to learn"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="a folder for results, runs and plots")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of step, sampler, train")
    parser.add_argument("--minutes", type=float, default=13, help="no round begins that would pass")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--no-stock", action="store_true", help="leave TRL with one micro-batch in float32 out"
    )
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=has_bfloat16_units(),
        help="TRL with one micro-batch in its default precision (default: where the processor has units for it; "
        "elsewhere a step takes a quarter of an hour)",
    )  # fmt: skip
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="job overrides")
    learning = parser.add_argument_group("time-to-reward, curves")
    learning.add_argument("--sides", nargs="+", choices=["rft", "trl"], default=["rft", "trl"])
    learning.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    learning.add_argument("--target", type=float, default=0.5, help="of valid_reward_mean")
    learning.add_argument("--min-steps", type=int, default=30, help="also after the target")
    learning.add_argument("--max-steps", type=int, default=60)
    learning.add_argument("--eval-every", type=int, default=5, help="steps")
    learning.add_argument("--trl-minutes", type=float, default=60, help="of TRL's steps, a seed")
    scaling = parser.add_argument_group("scaling")
    scaling.add_argument(
        "--axes", nargs="+", default=["group", "completion", "prompt", "rows", "memory"],
        choices=["group", "completion", "prompt", "rows", "memory"],
    )  # fmt: skip
    options = parser.parse_args(arguments)
    learns = options.mode in ("time-to-reward", "curves")
    options.job = options.job or ("capitals" if learns else "arithmetic")
    if options.mode in ("time-to-reward", "curves", "scaling", "page") and options.out is None:
        options.out = ROOT / ("docs/bench" if options.mode == "page" else "runs/bench")
    return options


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies matrices in bfloat16 by itself: x86's names for it, and ARM's."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}.isdisjoint(flags)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What a mode finds."""
    if options.mode in COMPARISONS:
        plan = Plan(
            options.job,
            options.repeats,
            options.minutes,
            options.threads,
            ("stock",) * (not options.no_stock) + ("bfloat16",) * options.bfloat16,
            tuple(options.set),
        )
        return COMPARISONS[options.mode](plan)
    if options.mode == "scaling":
        return measure_scaling(options.job, options.threads, options.axes, options.out)
    plan_of_race = Race(
        job=options.job,
        sides=tuple(options.sides),
        seeds=tuple(options.seeds),
        target=options.target,
        min_steps=options.min_steps,
        max_steps=options.max_steps,
        eval_every=options.eval_every,
        trl_minutes=options.trl_minutes,
        num_threads=options.threads,
        folder=options.out,
        overrides=tuple(options.set),
    )
    return race(plan_of_race) if options.mode == "time-to-reward" else draw_curves(plan_of_race)


def complete(found: dict[str, Any], options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The result with what every mode tells: the job, the machine, how long it took."""
    machine = environment(
        num_threads=options.threads,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_before=os.getloadavg()[2],
    )
    head = {"mode": options.mode, "job": options.job, "ratios": all_ratios()}
    # what follows the version is the host's own build
    machine["platform"] = f"{platform.system()} {platform.release().partition('-')[0]}"
    rest = {"machine": machine, "seconds": seconds}
    return {**head, **found, **rest}


def keep(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """Medians and ratios, for a person."""
    lines = [f"{result['mode']} of {result['job']}, {result['seconds'] / 60:.1f} minutes"]
    for side, values in result.get("medians", {}).items():
        told = [f"{key} {value:.4g}" for key, value in values.items() if key != "round"]
        lines.append(f"  {side}: {', '.join(told)}")
    for name, peak in result.get("peak_memory", {}).items():
        lines.append(f"  peak memory of {name}: {peak / 1e9:.2f} GB")
    for key in ("gemm_limit", "times_vllm", "verdict", "points"):
        if result.get(key) is not None:
            lines.append(f"  {key}: {json.dumps(result[key])}")
    lines.append(f"times better than TRL ({result.get('compared_with', 'not compared')}):")
    for name in RATIOS:
        value = result["ratios"][name]
        lines.append(f"  {name}: {'not measured' if value is None else format(value, '.2f')}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
