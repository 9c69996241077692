"""`time-to-reward` and `curves`: both sides learn the same job, step by step in turn.

Every run of one side and seed is a file of its own, written after each step and taken up as it is when
it ended: sides and seeds can be run apart. Seconds are those of steps; evaluations are in neither's.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmark.plotting import plot
from scripts.benchmark.ratios import all_ratios, times_less
from scripts.benchmark.workers import (
    ROOT,
    Worker,
    codes_of,
    commit,
    rft_worker,
    say,
    trl_worker,
)

Run = dict[str, Any]
SIDES = ("rft", "trl")
LAST_STEPS = range(20, 31)
"""The steps whose rewards the curves are compared by."""


@dataclass(frozen=True)
class Race:
    """What was asked for on the command line."""

    job: str
    sides: tuple[str, ...]
    seeds: tuple[int, ...]
    target: float
    min_steps: int
    max_steps: int
    eval_every: int
    trl_minutes: float
    num_threads: int
    folder: Path
    overrides: tuple[str, ...] = ()

    def path(self, side: str, seed: int) -> Path:
        return self.folder / "runs" / f"{self.job}-{side}-{seed}.json"

    def load(self, side: str, seed: int) -> Run | None:
        """The run if it ended."""
        path = self.path(side, seed)
        run: Run | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return run if run and run["ended"] else None


class Runner:
    """One side's run of one seed."""

    def __init__(self, race: Race, side: str, seed: int, worker: Worker):
        self._race = race
        self._worker = worker
        self.run: Run = {
            "job": race.job,
            "code": commit(),
            "side": side,
            "seed": seed,
            "target": race.target,
            "steps": [],
            "evaluations": [],
            "reached_step": None,
            "reached_seconds": None,
            "elapsed_seconds": 0.0,
            "ended": None,
        }

    @property
    def num_steps(self) -> int:
        return len(self.run["steps"])

    def begin(self, facts: Mapping[str, Any]) -> None:
        self.run["facts"] = facts
        self._evaluate()

    def advance(self) -> None:
        """One step, an evaluation if it is due, and the file."""
        step = self.num_steps + 1
        asked = {"step": step} if self.run["side"] == "rft" else {}
        told = self._worker.ask("step", **asked)
        kept = {k: v for k, v in told.items() if k not in ("rewards", "advantages")}
        self.run["steps"].append({"step": step, **kept})
        self.run["elapsed_seconds"] += told["seconds"]
        say(
            f"  {self.run['side']} seed {self.run['seed']} step {step}: reward "
            f"{told['reward_mean']:.3f}, {told['seconds']:.1f} s"
        )
        if step % self._race.eval_every == 0:
            self._evaluate()
        self.run["ended"] = self._end()
        if self.run["ended"]:
            self.run["peak_memory"] = self._worker.ask("peak_memory")
        self._write()

    def _evaluate(self) -> None:
        asked = {"step": self.num_steps} if self.run["side"] == "rft" else {}
        told = self._worker.ask("evaluate", **asked)
        self.run["evaluations"].append({"step": self.num_steps, **told})
        reward = told["valid_reward_mean"]
        say(f"  {self.run['side']} seed {self.run['seed']} valid_reward_mean {reward:.3f}")
        if reward >= self._race.target and self.run["reached_step"] is None:
            self.run["reached_step"] = self.num_steps
            self.run["reached_seconds"] = self.run["elapsed_seconds"]

    def _end(self) -> str | None:
        """Why the run is over, None while it is not."""
        race = self._race
        if self.run["reached_step"] is not None and self.num_steps >= race.min_steps:
            return "target reached"
        if self.num_steps >= race.max_steps:
            return "max_steps"
        is_late = self.run["elapsed_seconds"] >= 60 * race.trl_minutes
        return "trl_minutes" if self.run["side"] == "trl" and is_late else None

    def _write(self) -> None:
        path = self._race.path(self.run["side"], self.run["seed"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.run, indent=1) + "\n", encoding="utf-8")


def race(plan: Race) -> dict[str, Any]:
    """Run what is missing, and tell how much sooner rft reaches the target."""
    runs = run_all(plan)
    ours = [run["reached_seconds"] for run in runs if run["side"] == "rft"]
    theirs = [seconds_until(run) for run in runs if run["side"] == "trl"]
    is_told = bool(ours) and bool(theirs) and None not in ours
    ratio = times_less(statistics.median(ours), statistics.median(theirs)) if is_told else None
    return {
        "code": codes_of(runs),
        "ratios": all_ratios(time_to_reward=ratio),
        "compared_with": "trl_tuned",
        "target": plan.target,
        "clock": "seconds of steps; evaluations are left out on both sides",
        "runs": [summary(run) for run in runs],
        "medians": {
            side: {"seconds_to_target": statistics.median(values)}
            for side, values in (("rft", ours), ("trl_tuned", theirs))
            if values and None not in values
        },
    }


def draw_curves(plan: Race) -> dict[str, Any]:
    """Training rewards of both sides, a plot, and whether rft's last ones hold against TRL's."""
    runs = run_all(plan)
    curves = {
        side: {
            str(run["seed"]): [step["reward_mean"] for step in run["steps"]]
            for run in runs
            if run["side"] == side
        }
        for side in SIDES
    }
    found = {
        "code": codes_of(runs),
        "curves": curves,
        "verdict": verdict(curves["rft"], curves["trl"]) if all(curves.values()) else None,
    }
    plot("curves", found, plan.folder / f"curves-{plan.job}.png")
    return found


def verdict(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Mean reward of steps 20–30, by seed and over seeds; TRL's standard error is over its seeds,
    and with one seed there is none."""
    our_means = [last_mean(curve) for curve in ours.values()]
    their_means = [last_mean(curve) for curve in theirs.values()]
    error = None
    if len(their_means) > 1:
        error = statistics.stdev(their_means) / math.sqrt(len(their_means))
    mean, other = statistics.mean(our_means), statistics.mean(their_means)
    return {
        "rft_mean": mean,
        "trl_mean": other,
        "trl_standard_error": error,
        "rft_by_seed": our_means,
        "trl_by_seed": their_means,
        "is_not_below": None if error is None else mean >= other - error,
    }


def last_mean(curve: Sequence[float]) -> float:
    """Over steps 20–30, counted from 1; raises ValueError for a shorter curve."""
    if len(curve) < LAST_STEPS[-1]:
        raise ValueError(f"a curve of {len(curve)} steps ends before step {LAST_STEPS[-1]}")
    return statistics.mean(curve[step - 1] for step in LAST_STEPS)


def seconds_until(run: Mapping[str, Any]) -> float:
    """Seconds to the target, or, a lower bound, all that were spent without reaching it."""
    reached = run["reached_seconds"]
    return float(run["elapsed_seconds"] if reached is None else reached)


def summary(run: Mapping[str, Any]) -> dict[str, Any]:
    steps = run["steps"]
    keys = ("side", "seed", "reached_step", "reached_seconds", "elapsed_seconds", "ended")
    return {
        **{key: run[key] for key in keys},
        "is_lower_bound": run["reached_step"] is None,
        "num_steps": len(steps),
        "zero_signal_fraction": statistics.mean(step["zero_signal_fraction"] for step in steps),
        "median_step_seconds": statistics.median(step["seconds"] for step in steps),
        "evaluations": {e["step"]: e["valid_reward_mean"] for e in run["evaluations"]},
    }


def run_all(plan: Race) -> list[Run]:
    """All runs that are asked for, those that had ended before included."""
    for seed in plan.seeds:
        missing = [side for side in plan.sides if plan.load(side, seed) is None]
        if missing:
            run_seed(plan, seed, missing)
    runs = [plan.load(side, seed) for side in SIDES for seed in plan.seeds]
    return [run for run in runs if run]


def run_seed(plan: Race, seed: int, sides: Sequence[str]) -> None:
    """The sides in turn, a step each, until both are done."""
    with ExitStack() as stack:
        rft = stack.enter_context(rft_worker(plan.num_threads))
        job = str(ROOT / "configs" / plan.job / "job.yaml")
        rft.ask("start", job=job, overrides=[*plan.overrides, f"seed={seed}"])
        facts = rft.ask("facts")
        settings = rft.ask("settings", num_steps=plan.max_steps + 1)
        running = []
        if "rft" in sides:
            running.append(Runner(plan, "rft", seed, rft))
            running[-1].begin(facts)
        else:
            rft.close()
        if "trl" in sides:
            trl = stack.enter_context(trl_worker("tuned", plan.num_threads))
            trl.ask("start", setting="tuned", job=plan.job, settings=settings)
            running.append(Runner(plan, "trl", seed, trl))
            running[-1].begin(trl.ask("facts"))
        while running:
            for runner in running:
                runner.advance()
            running = [runner for runner in running if not runner.run["ended"]]
