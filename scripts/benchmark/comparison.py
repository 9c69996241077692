"""`step`, `sampler` and `train`: rft and TRL in turn, on the same prompts, at learning rate 0."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.benchmark.ratios import (
    Medians,
    all_ratios,
    better_setting,
    medians,
    times_less,
    times_more,
)
from scripts.benchmark.workers import (
    ROOT,
    Worker,
    gemm_worker,
    rft_worker,
    say,
    trl_worker,
    vllm_worker,
)

Samples = dict[str, list[dict[str, Any]]]
TRL_SIDES = ("trl_tuned", "trl_stock", "trl_bfloat16")
NUM_STEPS = 64
"""Steps of prompts that the other side is given: more than any mode runs."""

QUICK_SECONDS = 60
NUM_UNTUNED = 3
"""Steps of an untuned setting of TRL, at most."""

LEFT_OUT = ("train", "valid", "model_folder")
"""Settings that are rows, or a place on one machine."""


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    job: str
    repeats: int
    minutes: float
    num_threads: int
    untuned: tuple[str, ...]
    """Settings of TRL with one micro-batch: stock, bfloat16."""
    overrides: tuple[str, ...] = ()

    @property
    def job_file(self) -> Path:
        return ROOT / "configs" / self.job / "job.yaml"


class Bench:
    """rft, opened at learning rate 0 with every group computed, and the clock of the whole call."""

    def __init__(self, plan: Plan, stack: ExitStack):
        self.plan = plan
        self._stack = stack
        self._began = time.monotonic()
        self.rft = stack.enter_context(rft_worker(plan.num_threads))
        self.rft.ask(
            "start",
            job=str(plan.job_file),
            overrides=list(plan.overrides),
            learns=False,
            all_groups=True,
        )
        self.settings: dict[str, Any] = self.rft.ask("settings", num_steps=NUM_STEPS)
        self.facts: dict[str, Any] = {"rft": self.rft.ask("facts")}
        self.samples: Samples = {}
        self.peaks: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @contextmanager
    def trl(self, setting: str) -> Iterator[Worker]:
        """TRL in one of its settings; its peak memory is noted at the end."""
        with trl_worker(setting, self.plan.num_threads) as worker:
            worker.ask("start", setting=setting, job=self.plan.job, settings=self.settings)
            self.facts[worker.side] = worker.ask("facts")
            yield worker
            self.peaks[worker.side] = worker.ask("peak_memory")

    def note_untuned(self, measure: Callable[[Worker, int], dict[str, Any]]) -> None:
        """Each of these settings by itself, first: one step; where that takes less than a minute it does not count,
        and two more do."""
        for setting in self.plan.untuned:
            with self.trl(setting) as worker:
                first = measure(worker, 1)
                if first["seconds"] >= QUICK_SECONDS:
                    self.note(worker.side, 1, first)
                    continue
                for number in range(2, 1 + NUM_UNTUNED):
                    self.note(worker.side, number, measure(worker, number))

    def rounds(self, measures: Mapping[str, Callable[[int], dict[str, Any]]]) -> None:
        """One measurement of each side in turn, `repeats` times, or as often as the minutes allow."""
        longest = 0.0
        for number in range(1, self.plan.repeats + 1):
            if number > 1 and self.seconds + longest > 60 * self.plan.minutes:
                say(f"the minutes are spent after {number - 1} rounds")
                return
            began = time.monotonic()
            for side, measure in measures.items():
                self.note(side, number, measure(number))
            longest = max(longest, time.monotonic() - began)

    def note(self, side: str, number: int, sample: dict[str, Any]) -> None:
        """Keep a sample and tell it."""
        sample["round"] = number
        self.samples.setdefault(side, []).append(sample)
        tokens = sample.get("completion_tokens_mean")
        length = f", {tokens:.1f} tokens a completion" if tokens else ""
        say(f"  {side} round {number}: {sample['seconds']:.1f} s{length}")

    def result(self, key: str, **ratios: float | None) -> dict[str, Any]:
        """What every mode tells; `key` is what it compares TRL's settings by."""
        middle = medians(self.samples)
        compared = better_setting(middle, key, TRL_SIDES)
        lengths = {
            side: values["completion_tokens_mean"]
            for side, values in middle.items()
            if "completion_tokens_mean" in values
        }
        return {
            "ratios": all_ratios(**ratios),
            "compared_with": compared,
            "completion_tokens_mean": lengths,
            "medians": middle,
            "peak_memory": self.peaks,
            "facts": self.facts,
            "settings": {k: v for k, v in self.settings.items() if k not in LEFT_OUT},
            "samples": self.samples,
        }

    def memory_ratio(self) -> float | None:
        """Against the leaner of TRL's settings."""
        theirs = [self.peaks[side] for side in TRL_SIDES if side in self.peaks]
        return times_less(self.peaks["rft"], min(theirs, default=None))


def compare_steps(plan: Plan) -> dict[str, Any]:
    """Whole steps: sampling, grading, training, refreshed weights."""
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        bench.note_untuned(lambda trl, _: _step(trl))
        with bench.trl("tuned") as tuned:
            bench.rounds(
                {
                    "rft": lambda number: bench.rft.ask("step", step=number),
                    tuned.side: lambda _: _step(tuned),
                }
            )
        bench.peaks["rft"] = bench.rft.ask("peak_memory")
        _add_rates(bench.samples, "sampling_seconds")
        middle = medians(bench.samples)
        ours, theirs = middle["rft"], middle[better_setting(middle, "seconds", TRL_SIDES)]
        rate = ours["tokens_per_second"]
        return bench.result(
            "seconds",
            step_seconds=times_less(ours["seconds"], theirs["seconds"]),
            sample_tokens_per_second=times_more(rate, _highest_rate(middle)),
            peak_memory=bench.memory_ratio(),
        )


def compare_training(plan: Plan) -> dict[str, Any]:
    """Forward, backward and optimizer on completions that rft recorded."""
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        num_steps = max(plan.repeats, NUM_UNTUNED if plan.untuned else 0)
        recorded = {n: bench.rft.ask("record", step=n) for n in range(1, num_steps + 1)}
        say(f"recorded {sum(one['num_tokens'] for one in recorded.values())} completion tokens")
        bench.note_untuned(lambda trl, number: _trained(trl, recorded[number]))
        with bench.trl("tuned") as tuned:
            bench.rounds(
                {
                    "rft": lambda n: {**_lengths(recorded[n]), **bench.rft.ask("train", step=n)},
                    tuned.side: lambda n: _trained(tuned, recorded[n]),
                }
            )
        bench.peaks["rft"] = bench.rft.ask("peak_memory")
        middle = medians(bench.samples)
        theirs = middle[better_setting(middle, "seconds", TRL_SIDES)]
        return bench.result(
            "seconds",
            train_seconds=times_less(middle["rft"]["seconds"], theirs["seconds"]),
            peak_memory=bench.memory_ratio(),
        )


def compare_samplers(plan: Plan) -> dict[str, Any]:
    """Sampling alone, against vLLM's CPU build where it is, and against the model's matrix products."""
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        size = bench.settings["batch_size"]
        bench.note_untuned(lambda trl, n: trl.ask("sample", first=(n - 1) * size))
        limits = stack.enter_context(gemm_worker(plan.num_threads))
        limits.ask("start", model_folder=bench.settings["model_folder"])
        with bench.trl("tuned") as tuned:
            measures: dict[str, Callable[[int], dict[str, Any]]] = {
                "rft": lambda number: bench.rft.ask("sample", step=number),
                tuned.side: lambda number: tuned.ask("sample", first=(number - 1) * size),
                "gemm_limit": lambda _: _limit(limits, bench.samples["rft"][-1]),
            }
            vllm = vllm_worker(plan.num_threads)
            if vllm:
                stack.enter_context(vllm)
                adapter = stack.enter_context(TemporaryDirectory())
                bench.rft.ask("save_adapter", folder=adapter)
                vllm.ask("start", settings=bench.settings, adapter=adapter)
                bench.facts["vllm"] = vllm.ask("facts")
                ids = [row["token_ids"] for row in bench.settings["train"]]
                measures["vllm"] = lambda n: vllm.ask(
                    "sample", prompts=ids[(n - 1) * size : n * size]
                )
            bench.rounds(measures)
        _add_rates(bench.samples, "seconds")
        for sample in bench.samples["rft"]:
            sample.pop("prompts")
        middle = medians(bench.samples)
        rate = middle["rft"]["tokens_per_second"]
        result = bench.result(
            "seconds_per_token", sample_tokens_per_second=times_more(rate, _highest_rate(middle))
        )
        limit = middle["gemm_limit"]["tokens_per_second"]
        result["gemm_limit"] = {"tokens_per_second": limit, "share": rate / limit}
        result["times_vllm"] = times_more(rate, middle.get("vllm", {}).get("tokens_per_second"))
        return result


def _highest_rate(middle: Medians) -> float:
    """Of TRL's settings, tokens per second: lengths are natural, and the fewest seconds may be of the fewest tokens."""
    return max(middle[side]["tokens_per_second"] for side in TRL_SIDES if side in middle)


def _step(worker: Worker) -> dict[str, Any]:
    sample: dict[str, Any] = worker.ask("step")
    return {key: value for key, value in sample.items() if key not in ("rewards", "advantages")}


def _trained(worker: Worker, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """One step on recorded completions, of which the training part counts."""
    sample: dict[str, Any] = worker.ask("train", recorded=recorded)
    apart = [
        abs(theirs - ours)
        for theirs, ours in zip(sample["advantages"], recorded["advantages"], strict=True)
    ]
    return {
        "seconds": sample["training_seconds"],
        "largest_difference_of_advantages": max(apart),
        **_lengths(sample),
    }


def _lengths(sample: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("num_tokens", "num_completions", "completion_tokens_mean")
    return {key: sample[key] for key in keys}


def _limit(worker: Worker, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """The seconds that the matrix products of a sample's calls would take, for its tokens."""
    limit: dict[str, Any] = worker.ask(
        "measure", calls=sampled["calls"], prefill_head_rows=sampled["head_rows"]
    )
    return {**limit, **_lengths(sampled)}


def _add_rates(samples: Mapping[str, Sequence[dict[str, Any]]], key: str) -> None:
    for sample in (sample for rows in samples.values() for sample in rows):
        sample["tokens_per_second"] = sample["num_tokens"] / sample[key]
        sample["seconds_per_token"] = sample[key] / sample["num_tokens"]
